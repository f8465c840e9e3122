"""Episodes of teacher and student side by side, cut into spans as ``sad spans`` cuts them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sad_components.evaluation.metrics import first_difference
from sad_components.evaluation.turns import TurnReader
from sad_components.formats.registry import segment
from sad_components.report.pairs import OUTCOMES, Duel, Pair
from sad_components.report.reading import read_lines
from sad_components.report.runs import PlayedEpisode, Player
from sad_components.report.text import one_line, shorten
from sad_components.spans import Span, SpanKind
from sad_components.trajectory import Message, Trajectory

#: What is shown of an episode at most; the rest is said to be missing.
MAX_STEPS = 50
MAX_PIECE = 3000
MAX_PIECES = 24
#: What a record of any origin may raise: its fields are not checked to the last.
_NOT_CUT = (ValueError, TypeError, KeyError, AttributeError, RecursionError)


@dataclass
class Piece:
    """A stretch of text of one kind.

    Args:
        kind: ``context``, ``reason``, ``act`` or ``observation``.
        text: at most ``MAX_PIECE`` characters.
    """

    kind: str
    text: str


@dataclass
class Shown:
    """One player's episode, step by step.

    Args:
        label: the player.
        won: whether it won.
        steps: how many steps it took.
        pieces: step -> its pieces; step 0 is what comes before the first.
        problem: why there is no transcript; empty if there is one.
    """

    label: str
    won: bool
    steps: int
    pieces: dict[int, list[Piece]] = field(default_factory=dict)
    problem: str = ""


@dataclass
class Row:
    """A step of both episodes.

    Args:
        step: 1-based.
        teacher, student: pieces of each; empty where an episode is over.
        diverges: whether here they act differently for the first time.
    """

    step: int
    teacher: list[Piece]
    student: list[Piece]
    diverges: bool


@dataclass
class SideBySide:
    """A task as teacher and student played it.

    Args:
        task: id of the task.
        sentence: what was to be done.
        outcome: who won, in words.
        diverged: the first step at which they act differently; None if never or not known.
        teacher, student: the two episodes.
        opening: what both were told, before the first step.
        rows: step by step.
        left_out: steps beyond the first ``MAX_STEPS``.
    """

    task: str
    sentence: str
    outcome: str
    diverged: int | None
    teacher: Shown
    student: Shown
    opening: list[Piece] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    left_out: int = 0


def side_by_side(duels: Sequence[Duel], most: int, notes: list[str]) -> list[SideBySide]:
    """At most ``most`` episodes: of each duel in turn the most telling ones.

    Args:
        duels: who is compared.
        most: episodes in all.
        notes: gets what could not be read.
    """
    chosen = _in_turn(duels, most)
    wanted: dict[Path, set[str]] = {}
    for duel, pair in chosen:
        for player, episode in ((duel.teacher, pair.teacher), (duel.student, pair.student)):
            if player.transcripts is not None:
                wanted.setdefault(player.transcripts, set()).add(episode.id)
    read = {path: _read(path, ids, notes) for path, ids in wanted.items()}
    return [_compare(duel, pair, read) for duel, pair in chosen]


def _in_turn(duels: Sequence[Duel], most: int) -> list[tuple[Duel, Pair]]:
    """The most telling outcomes first; among equal ones the duels take turns."""
    ranked = [
        (OUTCOMES.index(pair.outcome), place, number, duel, pair)
        for number, duel in enumerate(duels)
        for place, pair in enumerate(duel.pairs[:most])
    ]
    ranked.sort(key=lambda each: each[:3])
    return [(duel, pair) for *_, duel, pair in ranked[:most]]


def _read(path: Path, ids: Iterable[str], notes: list[str]) -> dict[str, Trajectory]:
    """The trajectories of these ids in a JSONL file."""
    problems: Counter[str] = Counter()
    found: dict[str, Trajectory] = {}
    missing = set(ids)
    for record in read_lines(path, problems):
        if str(record.get("id", "")) in missing:
            try:
                trajectory = Trajectory.from_dict(record)
            except ValueError as error:
                problems[one_line(error, 80)] += 1
                continue
            found[trajectory.id] = trajectory
            missing.discard(trajectory.id)
        if not missing:
            break
    notes += [f"{path.name}: {times} records skipped ({why})" for why, times in problems.items()]
    return found


def _compare(duel: Duel, pair: Pair, read: dict[Path, dict[str, Trajectory]]) -> SideBySide:
    records = [
        read.get(player.transcripts, {}).get(episode.id) if player.transcripts else None
        for player, episode in ((duel.teacher, pair.teacher), (duel.student, pair.student))
    ]
    teacher = _show(duel.teacher, pair.teacher, records[0])
    student = _show(duel.student, pair.student, records[1])
    diverged = pair.diverged
    if diverged is None and all(records):
        diverged = first_difference(*map(_actions, filter(None, records)))
    known = next((r for r in records if r is not None), None)
    sentence = one_line((known and known.task) or "", 200)
    out = SideBySide(
        one_line(pair.student.task, 80), sentence, pair.outcome, diverged, teacher, student
    )
    out.opening = teacher.pieces.pop(0, []) or student.pieces.get(0, [])
    student.pieces.pop(0, None)
    last = max([*teacher.pieces, *student.pieces], default=0)
    out.left_out = max(0, last - MAX_STEPS)
    out.rows = [
        Row(step, teacher.pieces.get(step, []), student.pieces.get(step, []), step == diverged)
        for step in range(1, min(last, MAX_STEPS) + 1)
    ]
    return out


def _show(player: Player, episode: PlayedEpisode, record: Trajectory | None) -> Shown:
    shown = Shown(player.label, episode.won, episode.steps)
    if record is None:
        shown.problem = "no transcript of this episode was found"
        return shown
    try:
        shown.pieces = _cut(record)
    except _NOT_CUT as error:
        shown.problem = f"its transcript cannot be cut: {one_line(error, 120)}"
    return shown


def _cut(record: Trajectory) -> dict[int, list[Piece]]:
    out: dict[int, list[Piece]] = {}
    step = 0
    for message, spans in zip(record.messages, segment(record)):
        step = max([step, *(span.step for span in spans)])
        for number, piece in _pieces(message, spans, step):
            pieces = out.setdefault(number, [])
            if len(pieces) < MAX_PIECES:
                pieces.append(piece)
            elif len(pieces) == MAX_PIECES:
                pieces.append(Piece("context", "… [more pieces of this step are not shown]"))
    return out


def _pieces(message: Message, spans: Sequence[Span], step: int) -> Iterable[tuple[int, Piece]]:
    if message.reasoning_content:
        yield step, Piece("reason", shorten(message.reasoning_content, MAX_PIECE))
    for span in spans:
        text = message.text[span.start : span.end].strip("\n")
        if text.strip():
            at = span.step if span.kind is not SpanKind.CONTEXT else min(span.step or step, step)
            yield at, Piece(span.kind.label, shorten(text, MAX_PIECE))
    if message.tool_calls:
        text = json.dumps(message.tool_calls, ensure_ascii=False)
        yield step, Piece("act", shorten(text, MAX_PIECE))


def _actions(record: Trajectory) -> list[str]:
    """The actions of a transcript; whole turns where its format marks none."""
    turns = [str(message.content) for message in record.messages if message.role == "assistant"]
    try:
        reader = TurnReader(record.format or "react")
        return [reader.read(turn).action for turn in turns]
    except _NOT_CUT:
        return turns
