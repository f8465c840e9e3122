"""Renders a trajectory to the text a model sees, with spans over that text.

Two styles. *Plain* joins the turns (``Thought: ..``, ``Action: ..``, ``Observation: ..``). *Chat*
uses a template: the tokenizer's own (Jinja), or ChatML when there is none. Both keep the rule of
``docs/method.md``: what the harness writes is CONTEXT or OBSERVATION, what the agent generates,
its stop token included, is REASON or ACT.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sad_components.formats.base import Dialect
from sad_components.spans import Span, SpanKind, check_cover, merge
from sad_components.trajectory import Message, TrajectoryError

#: ``apply(messages, add_generation_prompt) -> text``: a chat template as a function.
ApplyTemplate = Callable[[list[dict[str, Any]], bool], str]


class NotAppendOnly(TrajectoryError):
    """The template rewrites earlier turns, so one sequence cannot hold the whole trajectory."""


@dataclass
class Rendered:
    """Text with spans that cover it.

    Args:
        text: what the model sees.
        spans: in order, covering ``text``.
        literal: character ranges ``[start, end)`` that are message content, where the text of a
            special token is just text and must not become a control token.
    """

    text: str = ""
    spans: list[Span] = field(default_factory=list)
    literal: list[tuple[int, int]] = field(default_factory=list)

    def add(self, text: str, kind: SpanKind, step: int = 0, *, literal: bool = False) -> None:
        """Appends one span (none for an empty text)."""
        if text:
            self.add_spans(text, [Span(0, len(text), kind, step)], literal=literal)

    def add_spans(self, text: str, spans: Sequence[Span], *, literal: bool = True) -> None:
        """Appends text with its spans (relative to it)."""
        start = len(self.text)
        if text and literal:
            self.literal.append((start, start + len(text)))
        self.text += text
        self.spans.extend(span.shifted(start) for span in spans)

    def finish(self) -> Rendered:
        """Merges neighbours and checks the cover."""
        self.spans = merge(self.spans)
        check_cover(self.spans, len(self.text))
        return self


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
    out = Rendered()
    steps = turn_steps(messages, content_spans)
    for message, spans, step in zip(messages, content_spans, steps, strict=True):
        if flat:
            out.add_spans(message.text, spans)
            continue
        if message.role == "assistant":
            out.add(dialect.prompt, SpanKind.CONTEXT)
            _add_agent_turn(out, message, spans, step)
            if not out.text.endswith(dialect.stop):
                out.add(dialect.stop, _last_agent_kind(message, spans), step)
        else:
            kind = spans[0].kind if spans else SpanKind.CONTEXT
            marker = dialect.observation
            if kind is SpanKind.OBSERVATION and marker and not message.text.startswith(marker):
                out.add(marker + " ", kind, step)
            out.add_spans(message.text, spans)
            if not out.text.endswith("\n"):
                out.add("\n", kind, step)
    ends_in_act = bool(out.spans) and out.spans[-1].kind is SpanKind.ACT
    if flat and ends_in_act and not out.text.endswith(dialect.stop):
        out.add(dialect.stop, SpanKind.ACT, out.spans[-1].step)
    return out.finish()


def render_chatml(messages: Sequence[Message], content_spans: Sequence[Sequence[Span]]) -> Rendered:
    """ChatML, for models without a template of their own and for looking at spans."""
    out = Rendered()
    steps = turn_steps(messages, content_spans)
    for message, spans, step in zip(messages, content_spans, steps, strict=True):
        out.add(f"<|im_start|>{message.role}\n", SpanKind.CONTEXT)
        if message.role == "assistant":
            _add_agent_turn(out, message, spans, step)
            out.add("<|im_end|>", _last_agent_kind(message, spans), step)
        else:
            out.add_spans(message.text, spans)
            out.add("<|im_end|>", SpanKind.CONTEXT)
        out.add("\n", SpanKind.CONTEXT)
    return out.finish()


def render_template(
    messages: Sequence[Message],
    content_spans: Sequence[Sequence[Span]],
    apply: ApplyTemplate,
    stop_tokens: Sequence[str] = (),
) -> Rendered:
    """A chat template's own text, by rendering growing prefixes of the conversation.

    A turn's share of the text is what it adds to the rendering. In an agent turn the generation
    prompt is CONTEXT; what follows, up to and including the first of ``stop_tokens`` after the
    content, is the agent's; the rest is CONTEXT.

    Raises:
        NotAppendOnly: a later turn changed the text of earlier ones (some templates drop earlier
            reasoning).
        TrajectoryError: the template left out or changed a turn's content.
    """
    out = Rendered()
    records = [template_record(m) for m in messages]
    steps = turn_steps(messages, content_spans)
    for index, (message, spans) in enumerate(zip(messages, content_spans, strict=True)):
        whole = apply(records[: index + 1], False)
        if not whole.startswith(out.text):
            raise NotAppendOnly(
                f"the chat template is not append-only: adding turn {index} ({message.role}) "
                "changed the text of earlier turns (it may drop earlier reasoning); set "
                "on_rewrite: per_turn for one row a turn, or give a chat_template that keeps it"
            )
        if message.role == "assistant":
            prompt = apply(records[:index], True)
            if not whole.startswith(prompt):  # e.g. an empty think block written for the agent
                prompt = _common_prefix(prompt, whole)
            out.add(prompt[len(out.text) :], SpanKind.CONTEXT)
            _place_agent_turn(
                out, whole[len(out.text) :], message, spans, steps[index], stop_tokens, index
            )
        else:
            _place_other_turn(out, whole[len(out.text) :], message, spans, index)
    return out.finish()


def render_per_turn(
    messages: Sequence[Message],
    content_spans: Sequence[Sequence[Span]],
    apply: ApplyTemplate,
    stop_tokens: Sequence[str] = (),
) -> list[Rendered]:
    """One rendering per agent turn, in which only that turn is supervised.

    For templates that rewrite the history: each row shows the history as the model sees it at
    that turn.
    """
    rows = []
    records = [template_record(m) for m in messages]
    steps = turn_steps(messages, content_spans)
    for index, (message, spans) in enumerate(zip(messages, content_spans, strict=True)):
        if message.role != "assistant" or not message.is_learnt:
            continue
        out = Rendered()
        prompt = apply(records[:index], True)
        whole = apply(records[: index + 1], False)
        prompt = _common_prefix(prompt, whole)
        out.add(prompt, SpanKind.CONTEXT, literal=True)
        _place_agent_turn(
            out, whole[len(prompt) :], message, spans, steps[index], stop_tokens, index
        )
        out.literal = [r for r in out.literal if r != (0, len(prompt))]
        rows.append(out.finish())
    return rows


def template_record(message: Message) -> dict[str, Any]:
    """The dict a chat template reads: role, text content, tool calls, reasoning."""
    record: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.tool_calls:
        record["tool_calls"] = [_call_record(call) for call in message.tool_calls]
    for key in ("name", "tool_call_id", "reasoning_content"):
        if getattr(message, key) is not None:
            record[key] = getattr(message, key)
    return record


def _call_record(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call with its arguments as an object when they are JSON (templates differ)."""
    function = dict(call.get("function") or {})
    if isinstance(function.get("arguments"), str):
        try:
            function["arguments"] = json.loads(function["arguments"])
        except json.JSONDecodeError:
            pass  # not JSON: the template gets the agent's text as it is
    return {**call, "function": function}


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
        elif message.role == "assistant" and (message.tool_calls or message.reasoning_content):
            current += not open_thought
        if message.role == "assistant":
            acted = bool(message.tool_calls) or any(s.kind is SpanKind.ACT for s in spans)
            open_thought = not acted and message.is_learnt
        steps.append(spans[-1].step if spans else current)
    return steps


def _agent_kinds(message: Message) -> tuple[SpanKind, SpanKind]:
    """Kinds of an agent turn's separate reasoning and tool calls."""
    if message.is_learnt:
        return SpanKind.REASON, SpanKind.ACT
    return SpanKind.CONTEXT, SpanKind.CONTEXT


def _last_agent_kind(message: Message, spans: Sequence[Span]) -> SpanKind:
    """Kind of what ends an agent turn, hence of its stop token."""
    reason, act = _agent_kinds(message)
    if message.tool_calls:
        return act
    if spans:
        return spans[-1].kind
    return reason if message.reasoning_content else SpanKind.CONTEXT


def _add_agent_turn(out: Rendered, message: Message, spans: Sequence[Span], step: int) -> None:
    """Separate reasoning, content and tool calls of an agent turn, in the order generated."""
    reason, act = _agent_kinds(message)
    if message.reasoning_content:
        out.add("<think>\n", reason, step)
        out.add(message.reasoning_content, reason, step, literal=True)
        out.add("\n</think>\n\n", reason, step)
    out.add_spans(message.text, spans)
    for call in message.tool_calls or []:
        if out.text and not out.text.endswith("\n"):
            out.add("\n", act, step)
        out.add(tool_call_text(call), act, step, literal=True)


def _place_agent_turn(
    out: Rendered,
    piece: str,
    message: Message,
    spans: Sequence[Span],
    step: int,
    stop_tokens: Sequence[str],
    index: int,
) -> None:
    """Lays an agent turn's spans over the text ``piece`` that the template made of it."""
    reason, _ = _agent_kinds(message)
    position = 0
    thought = (message.reasoning_content or "").strip()
    if thought and (found := piece.find(thought)) >= 0:
        out.add(piece[:found], reason, step)
        out.add(thought, reason, step, literal=True)
        position = found + len(thought)
    content, inner = _trimmed(message.text, spans, piece[position:])
    if content:
        found = piece.find(content, position)
        if found < 0:
            raise TrajectoryError(
                f"the chat template changed or left out the content of turn {index}: expected "
                f"{content[:60]!r} in {piece[position : position + 80]!r}"
            )
        lead = reason if thought else inner[0].kind
        out.add(piece[position:found], lead, inner[0].step)
        out.add_spans(content, inner)
        position = found + len(content)
    end = _stop_end(piece, position, stop_tokens)
    kind = _last_agent_kind(message, spans)
    out.add(piece[position:end], kind, step, literal=bool(message.tool_calls) and end > position)
    if message.tool_calls and out.literal and out.literal[-1][1] == len(out.text):
        stop = next((s for s in stop_tokens if piece[position:end].endswith(s)), "")
        start, stretch_end = out.literal.pop()
        if stretch_end - len(stop) > start:
            out.literal.append((start, stretch_end - len(stop)))
    out.add(piece[end:], SpanKind.CONTEXT)


def _place_other_turn(
    out: Rendered, piece: str, message: Message, spans: Sequence[Span], index: int
) -> None:
    content, inner = _trimmed(message.text, spans, piece)
    found = piece.rfind(content) if content else -1
    if content and found < 0:
        raise TrajectoryError(
            f"the chat template changed or left out the content of turn {index} "
            f"({message.role}): expected {content[:60]!r} in {piece[:80]!r}"
        )
    if content:
        out.add(piece[:found], SpanKind.CONTEXT)
        out.add_spans(content, inner)
        piece = piece[found + len(content) :]
    out.add(piece, SpanKind.CONTEXT)


def _trimmed(text: str, spans: Sequence[Span], piece: str) -> tuple[str, list[Span]]:
    """The content as the template shows it: whole, or stripped as several templates do."""
    if not text.strip():
        return "", []
    if text in piece:
        return text, list(spans)
    kept = text.strip()
    start = text.index(kept)
    inner = [
        Span(max(s.start - start, 0), min(s.end - start, len(kept)), s.kind, s.step, s.branch)
        for s in spans
        if s.end > start and s.start < start + len(kept)
    ]
    return kept, inner


def _stop_end(piece: str, position: int, stop_tokens: Sequence[str]) -> int:
    """End of the agent's share of ``piece``: behind the first stop token, else all of it."""
    ends = [found + len(stop) for stop in stop_tokens if (found := piece.find(stop, position)) >= 0]
    return min(ends) if ends else len(piece)


def _common_prefix(left: str, right: str) -> str:
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return left[:length]
