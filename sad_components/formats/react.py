"""ReAct: ``Thought:`` / ``Action:`` / ``Observation:``, numbered or not, as text or as chat turns.

The agent generates the ``Thought n:`` and ``Action n:`` markers and the newline that ends the
action; the harness writes ``Observation n:``. KnowAgent's ``ActionPath n:``, a planning trace that
the agent writes before its thought, is REASON; ``Final Answer:`` is an action.

In text, quoted marker lines are told from real ones by the harness's habits (``_markers``). In chat
turns roles decide: each marker opens its section in the agent's own turn; text before an action
is REASON, text with no marker at all is what the agent says instead of acting, ACT. An
``Observation:`` in the agent's own turn was made up by it: it is neither an observation nor worth
learning (the student would learn the environment's lines), so that section is CONTEXT, up to the
next marker of the agent; the row carries a note.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence

from sad_components.formats._chat import ChatFormat, Piece
from sad_components.formats._chatml import (
    chatml_messages,
    is_chatml,
    segment_chatml,
    split_chatml,
)
from sad_components.formats._markers import (
    Mark,
    Turn,
    early,
    group_turns,
    numbered_turns,
    spans_of_turns,
    unnumbered_turns,
    without_quoted_tail,
)
from sad_components.formats.base import Dialect, Evidence, collector_paused, cover
from sad_components.formats.registry import register_format
from sad_components.spans import Span, SpanKind, merge
from sad_components.trajectory import Message, TrajectoryError

_KIND = {
    "Thought": SpanKind.REASON,
    "ActionPath": SpanKind.REASON,
    "Action": SpanKind.ACT,
    "Final Answer": SpanKind.ACT,
    "Observation": SpanKind.OBSERVATION,
}
_SPELLING = {word.lower(): word for word in _KIND}
_WORDS = "|".join(_KIND)
_RESPONSE = "### Response:"
_STRICT = rf"[ \t]*(?P<mark>(?P<word>{_WORDS})(?:[ \t]+(?P<number>\d{{1,6}}))?[ \t]*:)"
_MARKER = re.compile(f"^{_STRICT}", re.MULTILINE)
#: Also right behind Alpaca's response header, which takes twice the time to look for.
_ALPACA_MARKER = re.compile(f"(?:^|(?<={_RESPONSE})){_STRICT}", re.MULTILINE)
#: For transcripts without any marker as above: another case, Markdown's stars, a wide colon.
_LOOSE_MARKER = re.compile(
    rf"^[ \t]*(?P<mark>(?:[-#*]+[ \t]*)?(?P<word>{_WORDS})(?:[ \t]+(?P<number>\d{{1,6}}))?"
    r"[ \t]*\**[:\uff1a]\**)",
    re.MULTILINE | re.IGNORECASE,
)
_ALPACA = re.compile(rf"^### Instruction:(?s:.*?)^{_RESPONSE}", re.MULTILINE)
_FIRST = re.compile(r"(?P<mark>(?P<word>ActionPath|Thought|Action)[ \t]+(?P<number>1)[ \t]*:)")
_GLUED_ACTION = re.compile(r"(?<=\s)Action(?:[ \t]+(?P<number>\d{1,6}))?[ \t]*:[ \t]*\w+[\[(]")
_FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)
_ENDS = re.compile(r"Final Answer|\w+(?:[ \t]+\d+)?[ \t]*:\s*finish\s*\[", re.IGNORECASE)


@register_format
class ReAct(ChatFormat):
    """``Thought n:`` / ``Action n:`` / ``Observation n:``, in text or in chat turns."""

    name = "react"
    summary = "Thought / Action / Observation, numbered or not, as text or as chat turns"
    dialect = Dialect(
        reason="Thought:", act="Action:", observation="Observation:", thought_optional=True
    )

    # -- text -----------------------------------------------------------------------------
    def text_evidence(self, text: str) -> Evidence:
        if is_chatml(text):
            return self.message_evidence(chatml_messages(text, split_chatml(text)))
        marks = _raw_marks(text)
        words = [m.word for m in marks]
        first = next((word for word in words if word != "Observation"), None)
        count = {w: words.count(w) for w in ("Thought", "Action", "Observation")}
        why = ", ".join(f"{n} '{w}:' lines" for w, n in count.items())
        if count["Thought"] and (count["Action"] or count["Observation"]):
            score = 0.85 if first == "Action" else 1.0
        elif count["Action"] and count["Observation"]:
            score = 0.8
        else:
            score = 0.3 if count["Thought"] or count["Action"] else 0.0
        return Evidence(early(score, text, marks[0].start if marks else 0), why)

    @collector_paused
    def segment_text(self, text: str) -> list[Span]:
        if is_chatml(text):
            return segment_chatml(self, text)
        marks = find_marks(text)
        turns = without_quoted_tail(text, group_turns(marks))
        choose = numbered_turns if _is_numbered(marks) else unnumbered_turns
        chosen = choose(text, turns, _ends)
        if not chosen:
            raise TrajectoryError("no line opens with 'Thought:' or 'Action:', so nothing is cut")
        if _GLUED_ACTION.search(text, chosen[0].start):
            limits = [*(turn.start for turn in chosen[1:]), len(text)]
            chosen = [_with_glued_action(text, *each) for each in zip(chosen, limits, strict=True)]
        spans = cover(text, spans_of_turns(text, chosen, branch=self.dialect.thought_optional))
        return _noise_after_finish(text, spans) if _ends(text, chosen[-1]) else spans

    # -- chat -----------------------------------------------------------------------------
    def message_evidence(self, messages: Sequence[Message]) -> Evidence:
        return self.turn_evidence(messages, "a 'Thought:' or 'Action:' line")

    def is_turn(self, text: str) -> bool:
        return any(m.kind is not SpanKind.OBSERVATION for m in _raw_marks(text))

    def cut_turn(self, message: Message) -> list[Piece]:
        text = message.text
        marks = _turn_marks(text)
        kinds = [mark.kind for mark in marks]
        acts = SpanKind.ACT in kinds or bool(message.tool_calls)
        if not marks:
            return [Piece(len(text), SpanKind.REASON if acts else SpanKind.ACT)]
        pieces = []
        if text[: marks[0].start].strip():
            opening = SpanKind.ACT if kinds[0] is SpanKind.OBSERVATION else kinds[0]
            pieces.append(Piece(marks[0].start, SpanKind.REASON if acts else opening))
        ends = [m.start for m in marks[1:]] + [len(text)]
        for kind, end in zip(kinds, ends, strict=True):
            made_up = kind is SpanKind.OBSERVATION
            pieces.append(Piece(end, SpanKind.CONTEXT if made_up else kind))
        return pieces

    def notes(self, messages: Sequence[Message]) -> list[str]:
        made_up = sum(
            any(mark.kind is SpanKind.OBSERVATION for mark in _turn_marks(m.text))
            for m in messages
            if m.role == "assistant"
        )
        if not made_up:
            return []
        return [f"{made_up} agent turn(s) with a made-up 'Observation:', which is not learnt"]


def find_marks(text: str) -> list[Mark]:
    """Marker lines of a flat transcript, from the Alpaca response header on if there is one."""
    header = _ALPACA.match(text, max(text.find("### Instruction:"), 0))
    start = header.end() - len(_RESPONSE) if header else 0
    marks = _raw_marks(text, start)
    numbered = [m for m in marks if m.number is not None]
    first = next((m for m in marks if m.kind is not SpanKind.OBSERVATION), None)
    opens = first is not None and first.number is not None
    if not numbered or not (opens or len(numbered) * 2 >= len(marks)):
        return [m for m in marks if m.number is None]
    if numbered[0].number != 1 or numbered[0].word == "Action":
        glued = _FIRST.search(text, 0, numbered[0].start)
        if glued:  # "...in the question.Thought 1: .." right behind an instruction
            numbered.insert(0, _mark(glued))
    return numbered


def _raw_marks(text: str, start: int = 0) -> list[Mark]:
    """Everything that looks like a marker; looser spellings count where no strict one stands."""
    marker = _ALPACA_MARKER if _RESPONSE in text else _MARKER
    marks = [_mark(m) for m in marker.finditer(text, start)]
    return marks or [_mark(m) for m in _LOOSE_MARKER.finditer(text, start)]


def _with_glued_action(text: str, turn: Turn, limit: int) -> Turn:
    """A turn of thoughts, with the ``Action: call[..]`` on a thought's line if there is one.

    It stands before ``limit``, where the next turn starts (which may be on the same line).
    """
    if turn.marks[-1].kind is SpanKind.ACT:
        return turn
    behind = turn.marks[-1].end
    newline = text.find("\n", behind)
    end = turn.answer.start if turn.answer else newline if newline >= 0 else limit
    glued = _GLUED_ACTION.search(text, behind, min(end, limit))
    if glued is None or (glued["number"] and int(glued["number"]) != turn.number):
        return turn
    return Turn([*turn.marks, _glued_mark(glued, turn.number)], turn.answer)


def _glued_mark(match: re.Match[str], number: int | None = None) -> Mark:
    return Mark(match.start(), match.end(), "Action", SpanKind.ACT, number)


def _mark(match: re.Match[str]) -> Mark:
    start, end = match.span("mark")
    found, number = match.group("word", "number")
    word = found if found in _KIND else _SPELLING[found.lower()]
    return Mark(start, end, word, _KIND[word], int(number) if number else None)


def _ends(text: str, turn: Turn) -> bool:
    last = turn.marks[-1]
    return last.kind is SpanKind.ACT and _ENDS.match(text, last.start) is not None


def _is_numbered(marks: Sequence[Mark]) -> bool:
    return bool(marks) and marks[0].number is not None


def _turn_marks(text: str) -> list[Mark]:
    """The markers of an agent turn; a marker line inside a closed fenced block is data."""
    marks = _raw_marks(text)
    if "```" in text:
        fences = [m.start() for m in _FENCE.finditer(text)]
        blocks = list(zip(fences[::2], fences[1::2], strict=False))
        marks = [m for m in marks if not _inside(m.start, blocks)]
    if {m.kind for m in marks} == {SpanKind.REASON}:
        for glued in _GLUED_ACTION.finditer(text, marks[-1].end):
            return [*marks, _glued_mark(glued)]
    return marks


def _inside(position: int, blocks: Sequence[tuple[int, int]]) -> bool:
    index = bisect_right(blocks, (position, 0)) - 1
    return index >= 0 and blocks[index][0] < position < blocks[index][1]


def _noise_after_finish(text: str, spans: list[Span]) -> list[Span]:
    """After the last action only its one-line answer is an observation; the rest is CONTEXT."""
    last = spans[-1]
    if last.kind is not SpanKind.OBSERVATION:
        return spans
    answer = _ALPACA_MARKER.match(text, last.start) or _LOOSE_MARKER.match(text, last.start)
    newline = text.find("\n", last.start) if answer else last.start
    cut = last.end if newline < 0 else newline + bool(answer)
    tail = [
        Span(last.start, cut, SpanKind.OBSERVATION, last.step),
        Span(cut, last.end, SpanKind.CONTEXT),
    ]
    return merge([*spans[:-1], *tail])
