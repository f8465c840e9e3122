"""Chat turns: roles decide who speaks, and each format only cuts what the agent said."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sad_components.formats.base import Evidence, Format, StepCounter
from sad_components.spans import AGENT_KINDS, Span, SpanKind, SpanValues, merge
from sad_components.trajectory import Message

_FILLER = re.compile(
    r"\s*(?:ok|okay|sure|understood|got it|i understand|alright)\b[^\n]{0,160}\s*\Z", re.IGNORECASE
)


class Piece(NamedTuple):
    """The next stretch of an agent turn: up to ``end`` it is ``kind``."""

    end: int
    kind: SpanKind


class ChatFormat(Format):
    """A format whose agent speaks in assistant turns: override :meth:`cut_turn`.

    System and developer turns are CONTEXT; so are user turns before the agent's first step (the
    task). Later user turns, and every tool turn, are OBSERVATION whatever they say. An agent turn
    of weight 0 is CONTEXT, but counts as a step; a demonstration (``is_demo``) is CONTEXT and does
    not count.
    """

    def cut_turn(self, message: Message) -> list[Piece]:
        """Pieces that cover the text of an agent turn, in order."""
        raise NotImplementedError

    def is_turn(self, text: str) -> bool:
        """Whether an agent turn looks like this format (it has one of the format's markers)."""
        return True

    def is_filler(self, message: Message) -> bool:
        """Whether an agent turn before the first real one only says ``OK`` to the instructions."""
        calls = message.tool_calls or message.reasoning_content
        return not calls and bool(_FILLER.match(message.text)) and not self.is_turn(message.text)

    def content_spans(self, messages: Sequence[Message]) -> list[list[Span]]:
        steps = StepCounter()
        return [self._message_spans(message, steps) for message in messages]

    def _message_spans(self, message: Message, steps: StepCounter) -> list[Span]:
        length = len(message.text)
        if message.role == "assistant":
            return self._agent_spans(message, steps)
        if not length:
            return []
        task = message.role == "user" and steps.step == 0
        if task or message.role in ("system", "developer") or message.extra.get("is_demo"):
            return [Span(0, length, SpanKind.CONTEXT)]
        return [Span(0, length, SpanKind.OBSERVATION, steps.step)]

    def _agent_spans(self, message: Message, steps: StepCounter) -> list[Span]:
        text = message.text
        if message.extra.get("is_demo") or (steps.step == 0 and self.is_filler(message)):
            return [Span(0, len(text), SpanKind.CONTEXT)] if text else []
        if not message.is_learnt:
            step = steps.act()
            return [Span(0, len(text), SpanKind.CONTEXT, step)] if text else []
        if message.reasoning_content:
            steps.reason()
        branch = self.dialect.thought_optional and not message.reasoning_content
        spans = pieces_to_spans(self.cut_turn(message), steps, branch=branch) if text else []
        if message.tool_calls and not (spans and spans[-1].kind is SpanKind.ACT):
            steps.act()
        return spans

    def turn_evidence(self, messages: Iterable[Message], what: str) -> Evidence:
        """Share of the agent's turns that look like this format; ``what`` names the markers."""
        turns = [m for m in messages if m.role == "assistant" and m.text.strip()]
        fitting = [self.is_turn(m.text) for m in turns]
        count = sum(fitting)
        total = sum(fits or not self.is_filler(m) for fits, m in zip(fitting, turns, strict=True))
        return Evidence(
            count / total if total else 0.0, f"{count} of {total} agent turns have {what}"
        )


def pieces_to_spans(
    pieces: Iterable[Piece], steps: StepCounter, *, branch: bool = False
) -> list[Span]:
    """Spans of one agent turn; neighbouring actions (parallel calls) are one step.

    Args:
        pieces: the turn's text, cut.
        steps: the trajectory's count, which goes on here.
        branch: mark the first of the agent's spans as a branch position.
    """
    spans: list[SpanValues] = []
    position, step, last = 0, 0, None
    for end, kind in pieces:
        if end <= position:
            continue
        if kind is not SpanKind.ACT:
            step = steps.reason() if kind is SpanKind.REASON else steps.step
        elif last is not kind:
            step = steps.act()
        marked = branch and kind in AGENT_KINDS
        branch = branch and not marked
        spans.append((position, end, kind, step, marked))
        position, last = end, kind
    return merge(spans)
