"""The canonical record: chat messages that name their own format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sad_components.formats.base import Evidence, Format
from sad_components.formats.registry import is_format, list_formats, register_format
from sad_components.spans import Span
from sad_components.trajectory import Message, Trajectory, TrajectoryError


@register_format
class Canonical(Format):
    """Records as ``sad convert`` writes them: ``messages`` and the name of their ``format``."""

    name = "canonical"
    summary = "canonical JSONL records, cut by the format that each one names"

    def row_evidence(self, row: Mapping[str, Any]) -> Evidence:
        stated = row.get("format")
        if isinstance(row.get("messages"), list) and stated != self.name and is_format(stated):
            return Evidence(1.0, f"the record names its format, {stated!r}")
        return Evidence(0.0, "names no registered format")

    def row_to_trajectory(self, row: Mapping[str, Any]) -> Trajectory:
        return Trajectory.from_dict(row)

    def content_spans(self, messages: Sequence[Message]) -> list[list[Span]]:
        raise TrajectoryError(
            "a canonical record is cut by the format it names, but it names none; add a 'format' "
            f"key with one of {', '.join(f.name for f in list_formats() if f is not self)}"
        )
