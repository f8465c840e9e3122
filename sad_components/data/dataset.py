"""Trajectories from a file, tokenised, with a report of what was left out and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from sad_components.data.shipped import resolve_source
from sad_components.data.transform import SpanTokenizer, TokenizedTrajectory
from sad_components.formats import get_format
from sad_components.formats.registry import detect, to_trajectory
from sad_components.spans import SpanKind
from sad_components.trajectory import Trajectory, TrajectoryError, iter_json_lines


@dataclass
class DataReport:
    """What became of the rows of a source.

    Args:
        source: where they came from.
        rows: records read.
        kept: rows that can be learnt from.
        skipped: reason -> ids (or line numbers) of the rows left out.
        truncated: rows cut to ``max_seq_len``.
        dropped_tokens: tokens lost by that.
        tokens: kept tokens per span kind.
        format: how the transcript format was decided.
    """

    source: str
    rows: int = 0
    kept: int = 0
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    truncated: int = 0
    dropped_tokens: int = 0
    tokens: Counter = field(default_factory=Counter)
    format: str = ""

    def add(self, row: TokenizedTrajectory) -> None:
        """Counts a kept row."""
        self.kept += 1
        counts = np.bincount(row.span_ids, minlength=len(SpanKind))
        self.tokens.update({k.label: int(counts[k]) for k in SpanKind})
        if row.truncated:
            self.truncated += 1
            self.dropped_tokens += row.truncated

    def lines(self) -> list[str]:
        """For people: what was kept, cut and left out."""
        total = sum(self.tokens.values())
        kinds = ", ".join(f"{k} {n:,}" for k, n in self.tokens.items())
        out = [f"{self.source}: {self.kept} of {self.rows} rows, {total:,} tokens ({kinds})"]
        if self.truncated:
            out.append(
                f"  cut at a step boundary to fit max_seq_len: {self.truncated} rows, "
                f"{self.dropped_tokens:,} tokens dropped"
            )
        for reason, ids in self.skipped.items():
            shown = ", ".join(ids[:5]) + (", .." if len(ids) > 5 else "")
            out.append(f"  skipped {len(ids)} ({shown}): {reason}")
        return out

    def to_dict(self) -> dict:
        """Plain JSON."""
        return {
            "source": self.source,
            "rows": self.rows,
            "kept": self.kept,
            "skipped": dict(self.skipped),
            "truncated": self.truncated,
            "dropped_tokens": self.dropped_tokens,
            "tokens": dict(self.tokens),
            "format": self.format,
        }


class TrajectoryDataset(Dataset):
    """Tokenised trajectories of one JSONL file, in memory.

    Args:
        source: path of a JSONL file, or ``shipped:<env>/<split>``.
        transform: makes rows of trajectories.
        limit: use the first this many records; None for all.

    Raises:
        FileNotFoundError: no such file.
        TrajectoryError: a malformed line (file and line named), no record, or none of use.

    Attributes:
        report: :class:`DataReport`.
        trajectories: canonical records behind the rows, by id.
    """

    def __init__(self, source: str, transform: SpanTokenizer, *, limit: int | None = None) -> None:
        path = resolve_source(source)
        self.report = DataReport(str(source))
        self.rows: list[TokenizedTrajectory] = []
        self.trajectories: dict[str, Trajectory] = {}
        for number, trajectory in _read(path, transform, limit, self.report):
            name = trajectory.id or f"line {number}"
            try:
                rows = transform.rows(trajectory)
            except TrajectoryError as error:
                self.report.skipped[str(error)].append(name)
                continue
            self.trajectories[name] = trajectory
            for row in rows:
                row.id = name
                self.rows.append(row)
                self.report.add(row)
        if not self.rows:
            raise TrajectoryError("\n".join(["no row can be learnt from", *self.report.lines()]))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TokenizedTrajectory:
        return self.rows[index]


def _read(
    path: Path, transform: SpanTokenizer, limit: int | None, report: DataReport
) -> Iterable[tuple[int, Trajectory]]:
    """Canonical records with their line numbers; rows of another format are counted as skipped."""
    raw = []
    for number, record in iter_json_lines(path):
        if limit is not None and len(raw) >= limit:
            break
        if not isinstance(record, dict):
            raise TrajectoryError(f"{path}:{number}: a row is a JSON object; got {record!r:.60}")
        raw.append((number, record))
    if not raw:
        raise TrajectoryError(f"{path} holds no trajectory: the file is empty")
    format = None
    if transform.format != "auto":
        format, report.format = get_format(transform.format), "set in the config"
    elif any("messages" not in r or not r.get("format") for _, r in raw):
        format, why = detect(r for _, r in raw[:50])
        report.format = f"{format.name}, detected: {why}"
    for number, record in raw:
        report.rows += 1
        try:
            if format is not None:
                yield number, to_trajectory(record, format)
            else:
                yield number, Trajectory.from_dict(record)
        except TrajectoryError as error:
            report.skipped[str(error)].append(str(record.get("id") or f"line {number}"))
