"""ReAct: ``Thought:`` / ``Action:`` / ``Observation:``, numbered or not, as text or as chat turns.

In text the agent generates the ``Thought n:`` and ``Action n:`` markers; the harness writes
``Observation n:``. In chat turns an assistant turn is ``Thought: ..`` then ``Action: ..``, either
of which may be missing, and the environment answers in a user or tool turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sad_components.formats.base import Dialect, Evidence, Format, StepCounter, cover
from sad_components.formats.registry import register_format
from sad_components.spans import Span, SpanKind, merge
from sad_components.trajectory import Message

_MARKER = re.compile(
    r"^[ \t]*(?P<word>Thought|Action|Observation)(?:[ \t]+(?P<number>\d+))?[ \t]*:", re.MULTILINE
)
_KIND = {
    "Thought": SpanKind.REASON,
    "Action": SpanKind.ACT,
    "Observation": SpanKind.OBSERVATION,
}


@register_format
class ReAct(Format):
    """``Thought n:`` / ``Action n:`` / ``Observation n:``, in text or in chat turns."""

    name = "react"
    summary = "Thought / Action / Observation, numbered or not, as text or as chat turns"
    dialect = Dialect(
        reason="Thought:", act="Action:", observation="Observation:", thought_optional=True
    )

    def text_evidence(self, text: str) -> Evidence:
        words = [m["word"] for m in _MARKER.finditer(text)]
        count = {w: words.count(w) for w in _KIND}
        why = ", ".join(f"{n} '{w}:' lines" for w, n in count.items())
        return Evidence(1.0 if count["Thought"] and count["Action"] else 0.0, why)

    def segment_text(self, text: str) -> list[Span]:
        steps = StepCounter()
        spans = []
        marks = list(_MARKER.finditer(text))
        previous = SpanKind.CONTEXT
        for index, mark in enumerate(marks):
            end = marks[index + 1].start() if index + 1 < len(marks) else len(text)
            kind = _KIND[mark["word"]]
            if kind is SpanKind.REASON:
                step = steps.reason()
            elif kind is SpanKind.ACT:
                step = steps.act()
            else:
                step = steps.step
            turn_opens = previous not in (SpanKind.REASON, SpanKind.ACT)
            branch = turn_opens and kind in (SpanKind.REASON, SpanKind.ACT)
            spans.append(Span(mark.start(), end, kind, step, branch))
            previous = kind
        return cover(text, spans)

    def message_evidence(self, messages: Sequence[Message]) -> Evidence:
        turns = [m.text for m in messages if m.role == "assistant" and m.text.strip()]
        fitting = sum(bool(re.search(r"^[ \t]*Action(?:[ \t]+\d+)?[ \t]*:", t, re.M)) for t in turns)
        why = f"{fitting} of {len(turns)} assistant turns have an 'Action:' line"
        return Evidence(fitting / len(turns) if turns else 0.0, why)

    def content_spans(self, messages: Sequence[Message]) -> list[list[Span]]:
        steps = StepCounter()
        return [self._turn(m, steps) for m in messages]

    def _turn(self, message: Message, steps: StepCounter) -> list[Span]:
        text = message.text
        if not text:
            return []
        if message.role != "assistant":
            before_agent = steps.step == 0 or message.role in ("system", "developer")
            kind = SpanKind.CONTEXT if before_agent else SpanKind.OBSERVATION
            return [Span(0, len(text), kind, 0 if before_agent else steps.step)]
        mark = next((m for m in _MARKER.finditer(text) if m["word"] == "Action"), None)
        cut = mark.start() if mark else len(text)
        if not message.is_learnt:
            steps.act()
            return [Span(0, len(text), SpanKind.CONTEXT, steps.step)]
        spans = []
        if cut:
            spans.append(Span(0, cut, SpanKind.REASON, steps.reason(), branch=True))
        if mark:
            spans.append(Span(cut, len(text), SpanKind.ACT, steps.act(), branch=not cut))
        return merge(spans)
