"""The registry of transcript formats, and how a row finds its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sad_components.formats.base import Evidence, Format, messages_from_spans
from sad_components.spans import Span, check_cover
from sad_components.trajectory import Message, Trajectory, TrajectoryError

_FORMATS: dict[str, Format] = {}
#: Keys under which a row may hold a flat transcript.
TEXT_KEYS = ("raw", "text", "transcript")
#: ``meta["layout"]`` of a record made from flat text: its contents, joined, are that text.
FLAT = "text"


def register_format(format: type[Format] | Format) -> type[Format] | Format:
    """Adds a format (class or instance) under its ``name``; usable as a decorator.

    Raises:
        ValueError: no name, or another format has it.
    """
    instance = format() if isinstance(format, type) else format
    if not instance.name:
        raise ValueError("a format needs a non-empty name")
    known = _FORMATS.get(instance.name)
    if known is not None and type(known).__qualname__ != type(instance).__qualname__:
        raise ValueError(f"format {instance.name!r} is registered already; choose another name")
    _FORMATS[instance.name] = instance
    return format


def list_formats() -> list[Format]:
    """All registered formats, by name."""
    _load_builtin()
    return [_FORMATS[name] for name in sorted(_FORMATS)]


def get_format(name: str) -> Format:
    """The format of that name; raises ``ValueError`` listing the names."""
    _load_builtin()
    if name not in _FORMATS:
        raise ValueError(f"no transcript format {name!r}; known: {', '.join(sorted(_FORMATS))}")
    return _FORMATS[name]


def flat_text(row: Mapping[str, Any]) -> str | None:
    """The flat transcript a row holds, or None."""
    for key in TEXT_KEYS:
        if isinstance(row.get(key), str):
            return row[key]
    return None


def evidence(format: Format, row: Mapping[str, Any]) -> Evidence:
    """How well ``format`` fits the row, by whichever shape the row has."""
    own = format.row_evidence(row)
    if own.score > 0:
        return own
    text = flat_text(row)
    if text is not None:
        return format.text_evidence(text)
    try:
        messages = Trajectory.from_dict(row).messages
    except TrajectoryError as error:
        return Evidence(0.0, str(error))
    return format.message_evidence(messages)


def detect(rows: Iterable[Mapping[str, Any]]) -> tuple[Format, str]:
    """The one format that fits ``rows`` best, and why.

    Raises:
        TrajectoryError: none fits, or two fit equally well (both are named).
    """
    rows = list(rows)
    if not rows:
        raise TrajectoryError("cannot detect a format without rows")
    ranked = []
    for format in list_formats():
        found = [evidence(format, row) for row in rows]
        score = sum(e.score for e in found) / len(found)
        best = max(found, key=lambda e: e.score)
        ranked.append((score, format, best.why))
    ranked.sort(key=lambda item: -item[0])
    (score, format, why), *others = ranked
    if score <= 0:
        tried = "; ".join(f"{f.name}: {w}" for _, f, w in ranked)
        raise TrajectoryError(f"no transcript format fits ({tried}); name one with format=")
    if others and abs(others[0][0] - score) < 1e-9:
        raise TrajectoryError(
            f"formats {format.name!r} and {others[0][1].name!r} fit equally well "
            f"({why} / {others[0][2]}); name one with format="
        )
    return format, why


def to_trajectory(row: Mapping[str, Any], format: Format) -> Trajectory:
    """The canonical record of a row of a known format.

    Raises:
        TrajectoryError: the row is not of this format.
    """
    if format.row_evidence(row).score > 0:
        trajectory = format.row_to_trajectory(row)
    elif (text := flat_text(row)) is not None:
        spans = format.segment_text(text)
        rest = {k: v for k, v in row.items() if k not in TEXT_KEYS and k != "messages"}
        messages = [m.to_dict() for m in messages_from_spans(text, spans)]
        trajectory = Trajectory.from_dict({**rest, "messages": messages})
        trajectory.meta["layout"] = FLAT
    else:
        trajectory = Trajectory.from_dict(row)
    trajectory.format = format.name
    return trajectory


def segment(trajectory: Trajectory) -> list[list[Span]]:
    """For each message the spans that cover its text, by the trajectory's format.

    Raises:
        TrajectoryError: no format fits, or the named one does not.
    """
    if trajectory.format:
        format = get_format(trajectory.format)
    else:
        format, _ = detect([trajectory.to_dict()])
    messages = trajectory.messages
    if trajectory.meta.get("layout") == FLAT:
        text = "".join(m.text for m in messages)
        per_message = split_spans(format.segment_text(text), messages)
    else:
        per_message = format.content_spans(messages)
    for message, spans in zip(messages, per_message, strict=True):
        check_cover(spans, len(message.text))
    return per_message


def split_spans(spans: Iterable[Span], messages: Iterable[Message]) -> list[list[Span]]:
    """Spans over the joined contents, cut at message boundaries and made relative."""
    out: list[list[Span]] = []
    queue = list(spans)
    index = start = 0
    for message in messages:
        end = start + len(message.text)
        mine = []
        while index < len(queue) and queue[index].start < end:
            s = queue[index]
            branch = s.branch and s.start >= start
            cut = Span(max(s.start, start), min(s.end, end), s.kind, s.step, branch)
            mine.append(cut.shifted(-start))
            if s.end > end:
                break
            index += 1
        out.append(mine)
        start = end
    return out


def _load_builtin() -> None:
    from sad_components.formats import react  # noqa: F401
