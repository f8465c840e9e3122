"""Flat transcripts in which marker lines tell the speakers apart: which markers to believe.

An observation may quote anything, marker lines included (a file, a web page, another transcript).
What the harness does tells the real turns from the quoted ones:

- the markers of a *turn* come in order (plan, thought, action), each at most once;
- the harness answers every action with an observation marker, so a turn that another turn follows
  without one is quoted text, unless the transcript has no observation marker at all;
- where turns are numbered, turn n + 1 follows turn n;
- the episode is over with its last action (``Finish[..]``); a new one needs a header line
  (``Question:``), and the last episode is the trajectory: those before it are few-shot examples;
- a whole episode that opens inside another, which then goes on counting, is quoted text;
- the turn at the end that the harness did not answer is quoted when it stands in a fenced block of
  the observation, behind a line that ends with a colon, or lacks the thought that every other turn
  opens with.

Of two candidates that pass all of this, one behind a colon (``The page says:``) is quoted; else
they cannot be told apart, and the later one is believed, because the harness appends. Everything
here is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sad_components.formats.base import StepCounter
from sad_components.spans import SpanKind, SpanValues

_HEADER = re.compile(
    r"^[ \t]*(?:Observation(?: \d+)?:[ \t]*)?(?:\d+ )?(?:Question|Claim|Task|Q|Instruction)[ \t]*:",
    re.MULTILINE,
)
_CALL = re.compile(r"[ \t]*[\w.]+[ \t]*\[")
_FENCE_LINE = re.compile(r"^[ \t]*```", re.MULTILINE)


class Mark(NamedTuple):
    """A marker at the start of a line: its range, word, kind, and number if it has one."""

    start: int
    end: int
    word: str
    kind: SpanKind
    number: int | None = None


@dataclass(slots=True)
class Turn:
    """The agent's markers of one turn, and the observation marker right behind them."""

    marks: list[Mark] = field(default_factory=list)
    answer: Mark | None = None

    @property
    def start(self) -> int:
        return self.marks[0].start

    @property
    def number(self) -> int | None:
        return self.marks[0].number

    @property
    def is_answered(self) -> bool:
        """Whether the harness answered this very turn."""
        return self.answer is not None and self.answer.number == self.number


#: ``ends(text, turn)``: whether the turn's action ends the episode.
Ends = Callable[[str, Turn], bool]


def early(score: float, text: str, first: int) -> float:
    """Evidence of ``score``, a little less the later in the text the first marker stands.

    What opens a transcript is the agent's; markers of another format that come later are more
    likely quoted by an observation.
    """
    return score * (1 - 0.2 * first / max(len(text), 1))


def is_introduced(text: str, start: int) -> bool:
    """Whether the line before the one at ``start`` ends with a colon: ``The note says:``."""
    newline = text.rfind("\n", 0, start)
    return newline > 0 and text[max(newline - 3, 0) : newline].rstrip(" \t\r").endswith(":")


def group_turns(marks: Iterable[Mark]) -> list[Turn]:
    """Turns from markers in text order."""
    turns: list[Turn] = []
    current: Turn | None = None
    for mark in marks:
        if mark.kind is SpanKind.OBSERVATION:
            if current is not None:
                current.answer = mark
                current = None
        elif current is not None and _continues(current, mark):
            current.marks.append(mark)
        else:
            current = Turn([mark])
            turns.append(current)
    return turns


def _continues(turn: Turn, mark: Mark) -> bool:
    if turn.marks[-1].kind is SpanKind.ACT or mark.number != turn.number:
        return False
    return mark.word not in [known.word for known in turn.marks]


def numbered_turns(text: str, turns: Sequence[Turn], ends: Ends) -> list[Turn]:
    """The believed turns among numbered ones, in order.

    Args:
        text: the transcript.
        turns: all candidates.
        ends: whether a turn ends the episode.
    """
    reachable = _reachable(turns)
    reachable = _without_nested(text, reachable, ends)
    reachable = reachable[_last_episode(text, reachable, ends) :]
    by_number: dict[int, list[Turn]] = {}
    for turn in reachable:
        by_number.setdefault(turn.number or 0, []).append(turn)
    chosen: list[Turn] = []
    limit = len(text)
    for number in sorted(by_number, reverse=True):
        before = [t for t in by_number[number] if t.start < limit]
        if not before:
            continue
        answered = [t for t in before if t.is_answered]
        plain = [t for t in answered if not is_introduced(text, t.start)]
        turn = (plain or answered or before)[-1]
        chosen.append(turn)
        limit = turn.start
    chosen.reverse()
    return _until_the_end(text, chosen, ends)


def _reachable(turns: Sequence[Turn]) -> list[Turn]:
    """The turns whose numbers count on, from 1 or from the first one's number.

    A harness that leaves a number out goes on from there: such a turn is answered, the next one
    follows it, and the number left out does not come later.
    """
    numbers = [turn.number or 0 for turn in turns]
    first = numbers[0] if numbers and (numbers[0] == 0 or 1 not in numbers) else 1
    last_seen = {number: index for index, number in enumerate(numbers)}
    reachable, reached = [], first - 1
    for index, (turn, number) in enumerate(zip(turns, numbers, strict=True)):
        goes_on = turn.is_answered and numbers[index + 1 : index + 2] == [number + 1]
        skips = number > reached + 1 and goes_on and last_seen.get(reached + 1, -1) < index
        if first <= number <= reached + 1 or (skips and reachable):
            reachable.append(turn)
            reached = max(reached, number)
    return reachable


def _without_nested(text: str, turns: Sequence[Turn], ends: Ends) -> list[Turn]:
    """The turns without whole episodes that another one encloses: it counts on behind them."""
    outer: list[list[Turn]] = []
    current: list[Turn] = []
    for index, turn in enumerate(turns):
        over = bool(current) and ends(text, current[-1])
        if current and not over and _opens_episode(text, turns, index):
            outer.append(current)
            current = []
        elif over and outer and turn.number == (outer[-1][-1].number or 0) + 1:
            current = outer.pop()
        current.append(turn)
    return [turn for episode in (*outer, current) for turn in episode]


def _last_episode(text: str, turns: Sequence[Turn], ends: Ends) -> int:
    """Index of the turn that opens the last episode that counts up to the last turn's number."""
    if not turns:
        return 0
    last = turns[-1].number or 0
    missing = {turn.number or 0 for turn in turns if (turn.number or 0) <= last}
    for index in range(len(turns) - 1, 0, -1):
        turn, previous = turns[index], turns[index - 1]
        missing.discard(turn.number or 0)
        if missing or not _opens_episode(text, turns, index) or not ends(text, previous):
            continue
        if previous.number == 1:
            counted = _opens_episode(text, turns, index - 1)
        else:
            counted = index > 1 and turns[index - 2].number == (previous.number or 0) - 1
        if counted:
            return index
    return 0


def _opens_episode(text: str, turns: Sequence[Turn], index: int) -> bool:
    """Whether a turn is number 1, with a header line between it and the turn before it."""
    if turns[index].number != 1:
        return False
    if index == 0:
        return True
    behind = turns[index - 1].marks[-1].end
    return _HEADER.search(text, behind, turns[index].start) is not None


def unnumbered_turns(text: str, turns: Sequence[Turn], ends: Ends) -> list[Turn]:
    """The believed turns among unnumbered ones, in order (arguments: :func:`numbered_turns`)."""
    if any(turn.is_answered for turn in turns):
        turns = [t for i, t in enumerate(turns) if t.is_answered or _closes(text, turns, i, ends)]
    episode: list[Turn] = []
    finals: list[Turn] = []
    for turn in turns:
        if finals and _HEADER.search(text, episode[-1].marks[-1].end, turn.start):
            episode, finals = [], []
        episode.append(turn)
        if ends(text, turn):
            finals.append(turn)
    quoted = {id(turn) for turn in finals[:-1]}  # the harness went on to the last of them
    return _until_the_end(text, [t for t in episode if id(t) not in quoted], ends)


def _closes(text: str, turns: Sequence[Turn], index: int, ends: Ends) -> bool:
    """Whether an unanswered turn is the last one, or ends an example before a new header."""
    if index + 1 == len(turns):
        return True
    turn = turns[index]
    behind = turn.marks[-1].end
    return ends(text, turn) and _HEADER.search(text, behind, turns[index + 1].start) is not None


def _until_the_end(text: str, turns: Sequence[Turn], ends: Ends) -> list[Turn]:
    for index, turn in enumerate(turns):
        if ends(text, turn):
            return list(turns[: index + 1])
    return list(turns)


def without_quoted_tail(text: str, turns: Sequence[Turn]) -> list[Turn]:
    """The candidates without an unanswered last one that its observation must have quoted."""
    *before, last = turns or [None]
    if last is None or last.answer is not None or not before or before[-1].answer is None:
        return list(turns)
    fences = [m.start() for m in _FENCE_LINE.finditer(text, before[-1].answer.end)]
    fenced = any(a < last.start < b for a, b in zip(fences[::2], fences[1::2], strict=False))
    thinks = [t.marks[0].kind is SpanKind.REASON for t in turns if t.answer is not None]
    quoted = fenced or is_introduced(text, last.start)
    lacks_thought = len(thinks) > 1 and all(thinks) and last.marks[0].kind is SpanKind.ACT
    return before if quoted or lacks_thought else list(turns)


def spans_of_turns(
    text: str,
    turns: Sequence[Turn],
    *,
    kind_of: Callable[[str, Mark], SpanKind] | None = None,
    branch: bool = True,
) -> Iterator[SpanValues]:
    """The agent's spans of believed turns: each marker with what follows it, up to the next.

    The newline that ends a turn is its stop token and belongs to it; further ones do not.

    Args:
        text: the transcript.
        turns: believed turns in order.
        kind_of: the kind of a marker's section where the marker alone does not tell.
        branch: mark the first span of every turn as a branch position.
    """
    steps = StepCounter()
    for index, turn in enumerate(turns):
        limit = turns[index + 1].start if index + 1 < len(turns) else len(text)
        end = turn_end(text, turn, limit)
        last = len(turn.marks) - 1
        for position, mark in enumerate(turn.marks):
            stop = end if position == last else turn.marks[position + 1].start
            kind = kind_of(text, mark) if kind_of else mark.kind
            step = steps.act() if kind is SpanKind.ACT else steps.reason()
            yield mark.start, stop, kind, step, branch and position == 0


def turn_end(text: str, turn: Turn, limit: int) -> int:
    """Where a turn's last section ends, its stop newline included."""
    last = turn.marks[-1]
    if turn.answer is not None:
        return _one_newline(text, last.end, turn.answer.start)
    if last.kind is SpanKind.REASON:
        return _one_newline(text, last.end, limit) if limit < len(text) else limit
    return action_end(text, last.end, limit)


def action_end(text: str, start: int, limit: int) -> int:
    """Where an action ends that no observation marker bounds.

    A fenced block ends with its fence, a call ``name[..]`` with the line that closes it (or its
    first line, when nothing does), anything else with the first blank line.
    """
    newline = text.find("\n", start, limit)
    first_line = limit if newline < 0 else newline
    fence = text.find("```", start, limit)
    if fence >= 0 and not text[start:fence].strip():
        closing = text.find("```", fence + 3, limit)
        return _line_end(text, closing, limit) if closing >= 0 else limit
    if call := _CALL.match(text, start, limit):
        closing = _closing_bracket(text, call.end() - 1, limit)
        return _line_end(text, closing if closing >= 0 else first_line, limit)
    if not text[start:first_line].strip():  # "Action:" and the action on the next line
        start = first_line + 1
    blank = text.find("\n\n", start, limit)
    return limit if blank < 0 else blank + 1


def _closing_bracket(text: str, opening: int, limit: int) -> int:
    if text.find("]", opening, limit) < 0:
        return -1
    depth = 0
    for match in _BRACKET.finditer(text, opening, limit):
        depth += 1 if match[0] == "[" else -1
        if depth == 0:
            return match.start()
    return -1


_BRACKET = re.compile(r"[\[\]]")


def _line_end(text: str, position: int, limit: int) -> int:
    newline = text.find("\n", position, limit)
    return limit if newline < 0 else newline + 1


def _one_newline(text: str, start: int, end: int) -> int:
    """``end`` moved back over all trailing newlines but the first."""
    while end - 2 >= start and text[end - 1] == "\n" and text[end - 2] == "\n":
        end -= 1
    return end
