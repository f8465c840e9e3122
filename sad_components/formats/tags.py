"""Tags: ``<think>..</think>`` is REASON, ``<action>``, ``<tool_call>``, ``<answer>`` are ACT.

The agent generates the tags, so they belong to their spans. White space between a thought and an
action belongs to the thought, behind an action to the action. Other text of an agent turn is
REASON beside an action and ACT without one (an answer in plain words). Tags inside an open element
are its text. A ``</think>`` without its opening tag ends a thought that the prompt opened; a
``<think>`` that is never closed ends with the turn or at the next action tag. An observation
element (``<observation>``, ``<tool_response>``, ``<information>``, ..) in the agent's own turn was
made up by it: CONTEXT, so that it is not learnt.

Flat text is cut by its ChatML role headers. Without any, the elements decide: observation elements
and what stands between the agent's are OBSERVATION.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sad_components.formats._chat import ChatFormat, Piece
from sad_components.formats._chatml import chatml_messages, is_chatml, segment_chatml, split_chatml
from sad_components.formats._markers import early
from sad_components.formats.base import (
    Dialect,
    Evidence,
    StepCounter,
    collector_paused,
    cover,
)
from sad_components.formats.registry import register_format
from sad_components.spans import AGENT_KINDS, Span, SpanKind
from sad_components.trajectory import Message, TrajectoryError

_REASON = ("think", "thinking", "thought", "reasoning")
_ACT = ("action", "tool_call", "answer", "search", "execute", "function_call")
_OBSERVATION = ("observation", "tool_response", "information", "result", "output")
_KIND = (
    dict.fromkeys(_REASON, SpanKind.REASON)
    | dict.fromkeys(_ACT, SpanKind.ACT)
    | dict.fromkeys(_OBSERVATION, SpanKind.OBSERVATION)
)
_TAG = re.compile(
    rf"<(?P<close>/?)(?P<name>{'|'.join(_KIND)})(?:\s[^<>\n]{{0,200}})?>", re.IGNORECASE
)


class Tag(NamedTuple):
    """An opening or closing tag."""

    start: int
    end: int
    name: str
    is_closing: bool

    @property
    def kind(self) -> SpanKind:
        return _KIND[self.name]


class Element(NamedTuple):
    """A tagged stretch of text with its tags."""

    start: int
    end: int
    kind: SpanKind


def elements(text: str) -> Iterator[Element]:
    """Tagged stretches in order; tags inside an open element are its text."""
    tags = [Tag(*m.span(), m["name"].lower(), bool(m["close"])) for m in _TAG.finditer(text)]
    last_close = {tag.name: tag.start for tag in tags if tag.is_closing}
    inner, reopened = _inner_closings(tags), _reopened(tags)
    opened: Tag | None = None
    for tag in tags:
        if opened is not None:
            if tag.is_closing and tag.name == opened.name:
                if tag.start not in inner:
                    yield Element(opened.start, tag.end, tag.kind)
                    opened = None
                continue
            closes = last_close.get(opened.name, -1) > opened.start and opened.start not in reopened
            if closes or tag.is_closing or tag.kind is SpanKind.REASON:
                continue
            yield Element(opened.start, tag.start, opened.kind)
            opened = None
        if not tag.is_closing:
            opened = tag
        elif tag.kind is SpanKind.REASON and tag is tags[0]:
            yield Element(0, tag.end, tag.kind)
    if opened is not None:
        yield Element(opened.start, len(text), opened.kind)


def _inner_closings(tags: Sequence[Tag]) -> set[int]:
    """Starts of closing tags that a further one of the same name follows: the last one counts.

    An observation may quote its own closing tag, and an action behind it: it ends with the last
    closing tag before the next observation. A thought ends with the last of closing tags in a row.
    """
    inner: set[int] = set()
    behind: dict[str, Tag] = {}
    following: Tag | None = None
    for tag in reversed(tags):
        closing = behind.get(tag.name) if tag.kind is SpanKind.OBSERVATION else following
        if tag.is_closing and closing and closing.is_closing and closing.name == tag.name:
            inner.add(tag.start)
        behind[tag.name] = following = tag
    return inner


def _reopened(tags: Sequence[Tag]) -> set[int]:
    """Starts of thoughts that were never closed: before a closing tag comes the next thought's."""
    reopened: set[int] = set()
    behind: dict[str, Tag] = {}
    for tag in reversed(tags):
        following = behind.get(tag.name)
        if following and tag.kind is SpanKind.REASON and not tag.is_closing | following.is_closing:
            reopened.add(tag.start)
        behind[tag.name] = tag
    return reopened


def cut_tags(text: str, *, has_call: bool = False) -> list[Piece]:
    """Pieces of an agent turn by its tags.

    Args:
        text: the turn's content.
        has_call: the turn also calls a tool, outside of its content.
    """
    found = list(elements(text))
    acts = has_call or any(e.kind is SpanKind.ACT for e in found)
    plain = SpanKind.REASON if acts else SpanKind.ACT
    pieces: list[Piece] = []
    position = 0
    for element in found:
        pieces.extend(_plain_piece(text, position, element.start, plain, pieces))
        made_up = element.kind is SpanKind.OBSERVATION
        pieces.append(Piece(element.end, SpanKind.CONTEXT if made_up else element.kind))
        position = element.end
    pieces.extend(_plain_piece(text, position, len(text), plain, pieces))
    return pieces


def _plain_piece(
    text: str, start: int, end: int, kind: SpanKind, before: Sequence[Piece]
) -> list[Piece]:
    """Untagged text; white space before it goes with the element that it follows."""
    plain = text[start:end]
    blank = len(plain) - len(plain.lstrip())
    pieces = [Piece(start + blank, before[-1].kind)] if blank and before else []
    if blank < len(plain) or (plain and end == len(text) and not before):
        pieces.append(Piece(end, kind))
    return pieces


@register_format
class Tags(ChatFormat):
    """``<think>..</think>`` and ``<action>..</action>`` (or a tool call, an answer) in a turn."""

    name = "tags"
    summary = "tags: <think>, <action>, <tool_call>, <answer>; chat turns, ChatML or plain text"
    dialect = Dialect(reason="<think>", act="<action>", stop="", thought_optional=True)

    # -- text -----------------------------------------------------------------------------
    def text_evidence(self, text: str) -> Evidence:
        if is_chatml(text):
            return self.message_evidence(chatml_messages(text, split_chatml(text)))
        agent = [e for e in elements(text) if e.kind in AGENT_KINDS]
        found = [e.kind for e in agent]
        first = agent[0].start if agent else 0
        acts = found.count(SpanKind.ACT)
        why = f"{len(found) - acts} thought and {acts} action elements"
        if not found:
            return Evidence(0.0, why)
        return Evidence(early(1.0 if acts and len(found) > acts else 0.4, text, first), why)

    @collector_paused
    def segment_text(self, text: str) -> list[Span]:
        if is_chatml(text):
            return segment_chatml(self, text)
        steps = StepCounter()
        agent: list[Span] = []
        for element in elements(text):
            if element.kind in AGENT_KINDS:
                agent += self._element_span(text, element, agent, steps)
        if not agent:
            raise TrajectoryError("no <think> or <action> element, so nothing is cut")
        return cover(text, agent)

    def _element_span(
        self, text: str, element: Element, agent: Sequence[Span], steps: StepCounter
    ) -> Iterator[Span]:
        """The element, with the white space between it and a thought right before it."""
        start = element.start
        last = agent[-1] if agent else None
        joined = last is not None and not text[last.end : start].strip()
        if joined and last is not None and last.kind is SpanKind.REASON and last.end < start:
            yield Span(last.end, start, last.kind, last.step)
        step = steps.act() if element.kind is SpanKind.ACT else steps.reason()
        yield Span(start, element.end, element.kind, step, branch=not joined)

    # -- chat -----------------------------------------------------------------------------
    def message_evidence(self, messages: Sequence[Message]) -> Evidence:
        found = self.turn_evidence(messages, "a <think> or action tag")
        acts = any(
            e.kind is SpanKind.ACT
            for m in messages
            if m.role == "assistant"
            for e in elements(m.text)
        )
        # thoughts alone also stand in front of tool calls and plain answers
        return found if acts else Evidence(0.6 * found.score, found.why + ", no action tag")

    def is_turn(self, text: str) -> bool:
        return any(e.kind in AGENT_KINDS for e in elements(text))

    def cut_turn(self, message: Message) -> list[Piece]:
        return cut_tags(message.text, has_call=bool(message.tool_calls))

    def notes(self, messages: Sequence[Message]) -> list[str]:
        made_up = sum(
            any(e.kind is SpanKind.OBSERVATION for e in elements(m.text))
            for m in messages
            if m.role == "assistant"
        )
        if not made_up:
            return []
        return [f"{made_up} agent turn(s) with a made-up observation element, which is not learnt"]
