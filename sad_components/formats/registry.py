"""The registry of transcript formats, how a row finds its own, and the cut itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from sad_components.formats._shapes import chat_key, chat_row
from sad_components.formats.base import Evidence, Format, messages_from_spans
from sad_components.spans import Span, check_cover
from sad_components.trajectory import Message, Trajectory, TrajectoryError

_FORMATS: dict[str, Format] = {}
#: Keys under which a row may hold a flat transcript.
TEXT_KEYS = ("raw", "text", "transcript")
#: ``meta["layout"]`` of a record made from flat text: its contents, joined, are that text.
FLAT = "text"
#: Scores of a row that differ by less are about equal: the file decides.
_CLOSE = 0.15
#: The format whose records name their own.
CANONICAL = "canonical"


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


def is_format(name: object) -> bool:
    """Whether a format has that name."""
    _load_builtin()
    return isinstance(name, str) and name in _FORMATS


def flat_text(row: Mapping[str, Any]) -> str | None:
    """The flat transcript a row holds, or None; a chat beside it goes before it."""
    text = next((row[key] for key in TEXT_KEYS if isinstance(row.get(key), str)), None)
    return None if text is None or chat_key(row) else text


def all_evidence(row: Mapping[str, Any]) -> dict[str, Evidence]:
    """How well each format fits the row, by whichever shape the row has."""
    text = flat_text(row)
    messages: list[Message] | None = None
    problem = ""
    if text is None:
        try:
            messages = Trajectory.from_dict(chat_row(row)).messages
        except TrajectoryError as error:
            problem = str(error)
    found = {}
    for format in list_formats():
        own = format.row_evidence(row)
        if own.score > 0:
            found[format.name] = own
        elif text is not None:
            found[format.name] = format.text_evidence(text)
        elif messages is not None:
            found[format.name] = format.message_evidence(messages)
        else:
            found[format.name] = Evidence(0.0, problem)
    return found


class Detector:
    """Decides the format of each row of a file, with the file's evidence behind it.

    A row goes to the format that fits it best. Of those that fit a row about equally well (an
    observation may quote another format), the one that fits the file better has it; where that is
    equal too, the row is refused.

    Args:
        sample: some rows of the file (the first 50, say).

    Raises:
        TrajectoryError: no rows, or no format fits a single one (what was tried is named).
    """

    def __init__(self, sample: Iterable[Mapping[str, Any]]) -> None:
        evidence = [all_evidence(row) for row in sample]
        if not evidence:
            raise TrajectoryError("cannot detect a format without rows")
        self.rows = len(evidence)
        self.scores: dict[str, float] = {}
        self._why: dict[str, str] = {}
        for name in evidence[0]:
            best = max((e[name] for e in evidence), key=lambda e: e.score)
            self.scores[name] = sum(e[name].score for e in evidence) / len(evidence)
            self._why[name] = best.why
        self._wins = dict.fromkeys(self.scores, 0)
        for row in evidence:
            best_score = max(e.score for e in row.values())
            for name, found in row.items():
                self._wins[name] += best_score > 0 and _equal(found.score, best_score)
        if not any(self.scores.values()):
            raise TrajectoryError(_none_fits(self._why))

    def choose(self, row: Mapping[str, Any]) -> tuple[Format, str]:
        """The row's format, and why.

        Raises:
            TrajectoryError: none fits, or two fit row and file equally well (both are named).
        """
        found = all_evidence(row)
        stated = row.get("format")
        if found[CANONICAL].score > 0 and stated != CANONICAL:
            return get_format(CANONICAL), found[CANONICAL].why
        best = max(e.score for e in found.values())
        if best <= 0:
            raise TrajectoryError(_none_fits({name: e.why for name, e in found.items()}))
        names = [name for name, e in found.items() if e.score >= best - _CLOSE]
        names.sort(key=lambda name: (-self.scores.get(name, 0.0), -found[name].score))
        if len(names) > 1 and self._ties(*names[:2], found):
            raise TrajectoryError(
                f"formats {names[0]!r} and {names[1]!r} fit equally well "
                f"({found[names[0]].why} / {found[names[1]].why}); name one with format="
            )
        return get_format(names[0]), found[names[0]].why

    def _ties(self, left: str, right: str, found: Mapping[str, Evidence]) -> bool:
        same_file = _equal(self.scores.get(left, 0.0), self.scores.get(right, 0.0))
        return same_file and _equal(found[left].score, found[right].score)

    def explain(self) -> str:
        """One line: which formats the file has, and why."""
        ranked = sorted(self._wins, key=lambda name: -self._wins[name])
        return "; ".join(
            f"{name} fits {self._wins[name]} of {self.rows} sampled rows best ({self._why[name]})"
            for name in ranked
            if self._wins[name]
        )


def detect(rows: Iterable[Mapping[str, Any]]) -> tuple[Format, str]:
    """The one format that fits ``rows`` best, and why.

    Raises:
        TrajectoryError: none fits, or two fit equally well (both are named).
    """
    detector = Detector(rows)
    ranked = sorted(detector.scores, key=lambda name: -detector.scores[name])
    first, second = ranked[0], ranked[1]
    if _equal(detector.scores[first], detector.scores[second]):
        raise TrajectoryError(
            f"formats {first!r} and {second!r} fit equally well "
            f"({detector._why[first]} / {detector._why[second]}); name one with format="
        )
    return get_format(first), detector._why[first]


def _none_fits(why: Mapping[str, str]) -> str:
    """The message when no format fits; formats with one reason share it."""
    names: dict[str, list[str]] = {}
    for name, reason in why.items():
        names.setdefault(reason, []).append(name)
    tried = "; ".join(f"{', '.join(those)}: {reason}" for reason, those in names.items())
    return f"no transcript format fits ({tried}); name one with format="


def _equal(left: float, right: float) -> bool:
    return abs(left - right) < 1e-9


def to_trajectory(row: Mapping[str, Any], format: Format) -> Trajectory:
    """The canonical record of a row of a known format.

    Its ``meta["notes"]`` say what the user should know of the cut.

    Raises:
        TrajectoryError: the row is not of this format.
    """
    if format.row_evidence(row).score > 0:
        trajectory = format.row_to_trajectory(row)
    elif (text := flat_text(row)) is not None:
        spans = format.segment_text(text)
        check_cover(spans, len(text))
        rest = {k: v for k, v in row.items() if k not in TEXT_KEYS and k != "messages"}
        trajectory = Trajectory.from_dict({**rest, "messages": [{"role": "user"}]})
        trajectory.messages = messages_from_spans(text, spans)
        trajectory.meta["layout"] = FLAT
    else:
        trajectory = Trajectory.from_dict(chat_row(row))
        _note_foreign_name(trajectory, format)
    if format.name != CANONICAL:
        trajectory.format = format.name
    if trajectory.format and trajectory.meta.get("layout") != FLAT:
        notes = get_format(trajectory.format).notes(trajectory.messages)
        known = trajectory.meta.get("notes", [])
        if fresh := [note for note in notes if note not in known]:
            trajectory.meta["notes"] = [*known, *fresh]
    return trajectory


def _note_foreign_name(trajectory: Trajectory, format: Format) -> None:
    """Says that a row's own ``format`` means nothing here; a record of flat text needs it."""
    stated = trajectory.format
    if not stated or is_format(stated) or format.name == CANONICAL:
        return
    if trajectory.meta.get("layout") == FLAT:
        raise TrajectoryError(
            f"the record holds flat text cut by format {stated!r}, which is not registered here; "
            f"register it, or convert the text anew (known: {', '.join(sorted(_FORMATS))})"
        )
    note = f"the row's own format, {stated!r}, is none of the formats here: cut as {format.name!r}"
    trajectory.meta["notes"] = [*trajectory.meta.get("notes", []), note]


def segment(trajectory: Trajectory) -> list[list[Span]]:
    """For each message the spans that cover its text, by the trajectory's format.

    Raises:
        TrajectoryError: no format fits, or the named one does not.
        ValueError: no format has the trajectory's format name.
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


def split_spans(spans: Sequence[Span], messages: Iterable[Message]) -> list[list[Span]]:
    """Spans over the joined contents, cut at message boundaries and made relative."""
    out: list[list[Span]] = []
    index = start = 0
    for message in messages:
        end = start + len(message.text)
        mine: list[Span] = []
        while index < len(spans) and spans[index].start < end:
            first, last, kind, step, branch = spans[index]
            begins = first >= start
            mine.append(
                Span(
                    first - start if begins else 0,
                    min(last, end) - start,
                    kind,
                    step,
                    branch and begins,
                )
            )
            if last > end:
                break
            index += 1
        out.append(mine)
        start = end
    return out


@cache  # an import statement costs time even when all is imported
def _load_builtin() -> None:
    from sad_components.formats import (  # noqa: F401
        alfworld,
        atif,
        canonical,
        openai_chat,
        react,
        responses,
        sweagent,
        tags,
        webshop,
    )
