"""ChatML as flat text: ``<|im_start|>role`` .. ``<|im_end|>``, cut by the format of its turns."""

from __future__ import annotations

import re
from typing import NamedTuple

from sad_components.formats.base import Format
from sad_components.spans import AGENT_KINDS, Span, SpanKind, merge
from sad_components.trajectory import ROLES, Message, TrajectoryError

_TURN = re.compile(r"<\|im_start\|>(?P<role>\w+)\n|(?P<end><\|im_end\|>)")
_START = "<|im_start|>"


class Header(NamedTuple):
    """One turn: where its header starts, its content, and its end token (empty when cut off)."""

    role: str
    start: int
    content_start: int
    content_end: int
    end: int


def is_chatml(text: str) -> bool:
    """Whether the text has ChatML role headers."""
    return _START in text and _TURN.search(text) is not None


def split_chatml(text: str) -> list[Header]:
    """The turns of a ChatML text. A header inside a turn that was not ended opens a new one."""
    turns: list[Header] = []
    open_at: re.Match[str] | None = None
    for match in _TURN.finditer(text):
        if open_at is not None:
            end = match.end() if match["end"] else match.start()
            turns.append(
                Header(open_at["role"], open_at.start(), open_at.end(), match.start(), end)
            )
            open_at = None
        if match["role"]:
            open_at = match
    if open_at is not None:
        turns.append(Header(open_at["role"], open_at.start(), open_at.end(), len(text), len(text)))
    return turns


def chatml_messages(text: str, turns: list[Header]) -> list[Message]:
    """The turns as messages; a role that chat does not know is read as the environment's."""
    return [
        Message(
            role=t.role if t.role in ROLES else "environment",
            content=text[t.content_start : t.content_end],
        )
        for t in turns
    ]


def segment_chatml(format: Format, text: str) -> list[Span]:
    """Spans of a ChatML text whose turns ``format`` cuts.

    Headers and the newlines between turns are CONTEXT; the end token of an agent turn is that
    turn's last kind, as its stop token, that of any other turn CONTEXT.

    Raises:
        TrajectoryError: no assistant turn.
    """
    turns = split_chatml(text)
    messages = chatml_messages(text, turns)
    if not any(m.role == "assistant" for m in messages):
        raise TrajectoryError("the ChatML text has no '<|im_start|>assistant' turn to cut")
    spans: list[Span] = []
    position = 0
    for turn, cut in zip(turns, format.content_spans(messages), strict=True):
        spans.append(Span(position, turn.content_start, SpanKind.CONTEXT))
        spans.extend(s.shifted(turn.content_start) for s in cut)
        agent = bool(cut) and cut[-1].kind in AGENT_KINDS
        kind, step = (cut[-1].kind, cut[-1].step) if agent else (SpanKind.CONTEXT, 0)
        spans.append(Span(turn.content_end, turn.end, kind, step))
        position = turn.end
    spans.append(Span(position, len(text), SpanKind.CONTEXT))
    return merge(spans)
