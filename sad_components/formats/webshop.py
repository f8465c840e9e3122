"""WebShop transcripts of ReAct: ``Action: think[..]``, ``search[..]``, ``click[..]``.

Every line of the agent opens with ``Action:`` and every answer with ``Observation:``. A
``think[..]`` is REASON, whatever else ACT; the marker belongs to its span. The ``Action: reset``
that opens a log is an action too, of step 0; what answers it is the task: CONTEXT.

A page in an observation may quote ``Action:`` lines. A real one is answered by the next
``Observation:`` line and, in logs that put a blank line before actions (ReAct's do), follows a
blank line; ``click[Buy Now]`` ends the episode once it is scored. A bracket that is never closed
does not matter: an action ends where its observation starts.
"""

from __future__ import annotations

import re
from itertools import chain

from sad_components.formats._chatml import is_chatml
from sad_components.formats._markers import (
    Mark,
    Turn,
    early,
    group_turns,
    spans_of_turns,
    unnumbered_turns,
)
from sad_components.formats.base import Dialect, Evidence, Format, collector_paused, cover
from sad_components.formats.registry import register_format
from sad_components.spans import Span, SpanKind
from sad_components.trajectory import TrajectoryError

_MARKER = re.compile(r"^(?P<word>Action|Observation):", re.MULTILINE)
_THOUGHT = re.compile(r"^Thought\b[^:\n]{0,8}:", re.MULTILINE)
_VERB = re.compile(r"[ \t]*(?P<verb>think|search|click|reset)\b", re.IGNORECASE)
_RESET = re.compile(r"[ \t]*reset[ \t\r]*$", re.IGNORECASE | re.MULTILINE)
_SCORE = re.compile(r"\s*Your score\b")
_ENDS = re.compile(r"Action:[ \t]*click\[buy now\]", re.IGNORECASE)


@register_format
class WebShop(Format):
    """``Action: think[..]`` / ``search[..]`` / ``click[..]``, answered by ``Observation:``."""

    name = "webshop"
    summary = "WebShop: 'Action: think[..]', 'search[..]', 'click[..]' / 'Observation: ..'"
    dialect = Dialect(
        reason="Action: think[", act="Action:", observation="Observation:", thought_optional=True
    )

    def text_evidence(self, text: str) -> Evidence:
        if is_chatml(text):
            return Evidence(0.0, "ChatML text")
        actions = [m for m in _MARKER.finditer(text) if m["word"] == "Action"]
        fitting = sum(_VERB.match(text, m.end()) is not None for m in actions)
        why = f"{fitting} of {len(actions)} 'Action:' lines think, search or click"
        if not fitting:
            return Evidence(0.0, why)
        thoughts = [m.start() for m in _THOUGHT.finditer(text)]
        if thoughts and thoughts[0] < actions[0].start():
            return Evidence(0.1, why + ", but a 'Thought:' line comes first")
        share = fitting / len(actions)
        if thoughts and not any(_kind(text, _mark(m)) is SpanKind.REASON for m in actions):
            share *= 1 - min(len(thoughts) / len(actions), 0.9)
        return Evidence(early(share, text, actions[0].start()), why)

    @collector_paused
    def segment_text(self, text: str) -> list[Span]:
        turns = unnumbered_turns(text, group_turns(_marks(text)), _ends)
        opening = []
        if turns and (reset := _RESET.match(text, turns[0].marks[-1].end)):
            line_end = min(reset.end() + 1, len(text))
            opening = [(turns[0].marks[-1].start, line_end, SpanKind.ACT, 0, False)]
            turns = turns[1:]
        if not turns:
            raise TrajectoryError("no 'Action:' line of the agent, so nothing is cut")
        spans = spans_of_turns(text, turns, kind_of=_kind, branch=True)
        return cover(text, chain(opening, spans))


def _ends(text: str, turn: Turn) -> bool:
    """Bought and scored; a shop that answers anything else goes on."""
    if not _ENDS.match(text, turn.start):
        return False
    return turn.answer is None or _SCORE.match(text, turn.answer.end) is not None


def _kind(text: str, mark: Mark) -> SpanKind:
    verb = _VERB.match(text, mark.end)
    thinks = verb is not None and verb["verb"].lower() == "think"
    return SpanKind.REASON if thinks else SpanKind.ACT


def _marks(text: str) -> list[Mark]:
    """Marker lines; where actions follow a blank line by habit, the others are quoted text."""
    marks = [_mark(m) for m in _MARKER.finditer(text)]
    if not any(_behind_blank(text, m) for m in marks if m.kind is SpanKind.ACT):
        return marks
    return [
        m for m in marks if m.kind is SpanKind.OBSERVATION or m.start == 0 or _behind_blank(text, m)
    ]


def _behind_blank(text: str, mark: Mark) -> bool:
    return text.endswith(("\n\n", "\n\r\n"), 0, mark.start)


def _mark(match: re.Match[str]) -> Mark:
    kind = SpanKind.ACT if match["word"] == "Action" else SpanKind.OBSERVATION
    return Mark(match.start(), match.end(), match["word"], kind)
