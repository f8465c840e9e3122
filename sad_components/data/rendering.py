"""Renders a trajectory to the text a model sees, with spans over that text.

*Plain* style joins the turns (``Thought: ..``, ``Action: ..``, ``Observation: ..``); *chat* style
uses a template: the tokenizer's own (``template_rendering``), or ChatML, here. All keep the rule
of ``docs/method.md``: what the harness writes is CONTEXT or OBSERVATION, what the agent
generates, its stop token included, is REASON or ACT.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sad_components.formats.base import Dialect
from sad_components.spans import AGENT_KINDS, Span, SpanKind, SpanValues, check_cover, merge
from sad_components.trajectory import Message


@dataclass
class Rendered:
    """Text with spans that cover it.

    Args:
        text: what the model sees.
        spans: in order, covering ``text``.
        literal: character ranges ``[start, end)`` that are message content, where the text of a
            special token is just text and must not become a control token.
    """

    text: str
    spans: list[Span]
    literal: list[tuple[int, int]] = field(default_factory=list)


class Renderer:
    """Puts a :class:`Rendered` together, piece by piece."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._spans: list[SpanValues] = []
        self._literal: list[tuple[int, int]] = []
        self._branch: bool | None = None
        self.length = 0

    def open_turn(self, branch: bool) -> None:
        """Starts a turn whose first agent span is a branch position if ``branch`` is true.

        Without a call the spans keep the marks they come with.
        """
        self._branch = branch

    def add(self, text: str, kind: SpanKind, step: int = 0, *, literal: bool = False) -> None:
        """Appends one span (none for an empty text)."""
        if not text:
            return
        start = self.length
        branch = bool(self._branch) and kind in AGENT_KINDS
        if branch:
            self._branch = False
        self._spans.append((start, self._grow(text, literal), kind, step, branch))

    def add_spans(self, text: str, spans: Sequence[SpanValues], *, literal: bool = True) -> None:
        """Appends text with its spans (relative to it)."""
        if not text:
            return
        start = self.length
        self._grow(text, literal)
        opened = self._branch
        for first, last, kind, step, branch in spans:
            if opened is not None:
                branch = opened and kind in AGENT_KINDS
                opened = opened and not branch
            self._spans.append((start + first, start + last, kind, step, branch))
        self._branch = opened

    def _grow(self, text: str, literal: bool) -> int:
        """Appends the text itself; the new length."""
        start, self.length = self.length, self.length + len(text)
        if literal:
            self._literal.append((start, self.length))
        self._pieces.append(text)
        return self.length

    def endswith(self, text: str) -> bool:
        """Whether what was added so far is not empty and ends with ``text`` (one character)."""
        return bool(self._pieces) and self._pieces[-1].endswith(text)

    @property
    def last(self) -> Span | None:
        """The span added last."""
        return Span(*self._spans[-1]) if self._spans else None

    def finish(self) -> Rendered:
        """Merges neighbours and checks the cover."""
        spans = merge(self._spans)
        check_cover(spans, self.length)
        return Rendered("".join(self._pieces), spans, self._literal)


def render_plain(
    messages: Sequence[Message],
    content_spans: Sequence[Sequence[Span]],
    dialect: Dialect,
    *,
    flat: bool = False,
) -> Rendered:
    """One flat transcript: turns joined, ``dialect.observation`` before what the harness answers.

    Args:
        messages: the trajectory's turns.
        content_spans: per message the spans over its text (``formats.registry.segment``).
        dialect: who writes which marker.
        flat: the contents were cut from flat text and are joined as they are.
    """
    out = Renderer()
    steps = turn_steps(messages, content_spans)
    for message, spans, step in zip(messages, content_spans, steps, strict=True):
        if flat:
            out.add_spans(message.text, spans)
            continue
        out.open_turn(dialect.thought_optional)
        if message.role == "assistant":
            out.add(dialect.prompt, SpanKind.CONTEXT)
            _add_agent_turn(out, message, spans, step)
            stop = dialect.stop or "\n"
            if not out.endswith(stop):
                out.add(stop, last_agent_kind(message, spans), step)
        else:
            kind = spans[0].kind if spans else SpanKind.CONTEXT
            marker = dialect.observation
            if kind is SpanKind.OBSERVATION and marker and not message.text.startswith(marker):
                out.add(marker + " ", kind, step)
            out.add_spans(message.text, spans)
            if not out.endswith("\n"):
                out.add("\n", kind, step)
    last = out.last
    if flat and last and last.kind is SpanKind.ACT and not out.endswith(dialect.stop):
        out.add(dialect.stop, SpanKind.ACT, last.step)
    return out.finish()


def render_chatml(
    messages: Sequence[Message],
    content_spans: Sequence[Sequence[Span]],
    *,
    thought_optional: bool = True,
) -> Rendered:
    """ChatML, for models without a template of their own and for looking at spans.

    Args:
        messages: the trajectory's turns.
        content_spans: per message the spans over its text.
        thought_optional: the first token of every agent turn is a branch position.
    """
    out = Renderer()
    steps = turn_steps(messages, content_spans)
    for message, spans, step in zip(messages, content_spans, steps, strict=True):
        out.open_turn(thought_optional)
        out.add(f"<|im_start|>{message.role}\n", SpanKind.CONTEXT)
        if message.role == "assistant":
            _add_agent_turn(out, message, spans, step)
            out.add("<|im_end|>", last_agent_kind(message, spans), step)
        else:
            out.add_spans(message.text, spans)
            out.add("<|im_end|>", SpanKind.CONTEXT)
        out.add("\n", SpanKind.CONTEXT)
    return out.finish()


def tool_call_text(call: dict[str, Any]) -> str:
    """A tool call as text: ``<tool_call>`` around its JSON."""
    function = call.get("function") or call
    arguments = function.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    name = json.dumps(function.get("name", ""), ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'


def turn_steps(messages: Sequence[Message], content_spans: Sequence[Sequence[Span]]) -> list[int]:
    """The step of every turn; one without content (tool calls alone) continues the count."""
    steps: list[int] = []
    current, open_thought = 0, False
    for message, spans in zip(messages, content_spans, strict=True):
        if spans:
            current = max(current, spans[-1].step)
        elif _acts_outside_its_content(message):
            current += not open_thought
        if message.role == "assistant":
            acted = bool(message.tool_calls) or SpanKind.ACT in [s.kind for s in spans]
            open_thought = not acted and message.is_learnt
        steps.append(spans[-1].step if spans else current)
    return steps


def _acts_outside_its_content(message: Message) -> bool:
    """Whether an agent's turn, no demonstration, has calls or reasoning beside its content."""
    if message.role != "assistant" or message.extra.get("is_demo"):
        return False
    return bool(message.tool_calls or message.reasoning_content)


def agent_kinds(message: Message) -> tuple[SpanKind, SpanKind]:
    """Kinds of an agent turn's separate reasoning and tool calls."""
    if message.is_learnt:
        return SpanKind.REASON, SpanKind.ACT
    return SpanKind.CONTEXT, SpanKind.CONTEXT


def last_agent_kind(message: Message, spans: Sequence[Span]) -> SpanKind:
    """Kind of what ends an agent turn, hence of its stop token."""
    if spans and not message.tool_calls:
        return spans[-1].kind
    reason, act = agent_kinds(message)
    if message.tool_calls:
        return act
    return reason if message.reasoning_content else SpanKind.CONTEXT


def _add_agent_turn(out: Renderer, message: Message, spans: Sequence[Span], step: int) -> None:
    """Separate reasoning, content and tool calls of an agent turn, in the order generated."""
    reason, act = agent_kinds(message)
    if message.reasoning_content:
        out.add("<think>\n", reason, step)
        out.add(message.reasoning_content, reason, step, literal=True)
        out.add("\n</think>\n\n", reason, step)
    out.add_spans(message.text, spans)
    for call in message.tool_calls or []:
        if out.length and not out.endswith("\n"):
            out.add("\n", act, step)
        out.add(tool_call_text(call), act, step, literal=True)
