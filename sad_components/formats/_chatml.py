"""ChatML as flat text: ``<|im_start|>role`` .. ``<|im_end|>``, cut by the format of its turns.

The content of a turn may quote ChatML itself. What the template does tells the real headers:

- the text opens with a header, and where headers stand right behind ``<|im_end|>`` by habit, one
  that does not is quoted;
- an ended turn is followed by a header: text or a second ``<|im_end|>`` behind the end of an agent
  turn means that this turn was quoted, end token and all;
- the agent does not speak twice in a row where it otherwise never does: the first was quoted.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sad_components.formats.base import Format
from sad_components.spans import AGENT_KINDS, Span, SpanKind, merge
from sad_components.trajectory import ROLES, Message, TrajectoryError

_HEADER = re.compile(r"<\|im_start\|>(?P<role>\w+)\n")
#: How a ChatML text opens: with a header, behind white space or a token such as ``<s>``.
_OPENING = re.compile(r"\s*(?:<[^<>\n]{1,40}>\s*)?<\|im_start\|>\w+\n")
_END = "<|im_end|>"


class Header(NamedTuple):
    """One turn: where its header starts, its content, and its end token (empty when cut off)."""

    role: str
    start: int
    content_start: int
    content_end: int
    end: int


def is_chatml(text: str) -> bool:
    """Whether the text opens with a ChatML role header."""
    return _OPENING.match(text) is not None


def split_chatml(text: str) -> list[Header]:
    """The turns of a ChatML text, without those that a turn quotes."""
    headers = _behind_ends(text, list(_HEADER.finditer(text)))
    turns: list[Header] = []
    for match, following in zip(headers, [*headers[1:], None], strict=False):
        limit = following.start() if following else len(text)
        quoted = match["role"] == "assistant" and turns and not _is_whole(text, match.end(), limit)
        if quoted:
            turns.append(_extended(text, turns.pop(), limit))
        else:
            turns.append(_turn(text, match["role"], match.start(), match.end(), limit))
    return _without_repeats(text, turns)


def _behind_ends(text: str, headers: list[re.Match[str]]) -> list[re.Match[str]]:
    """The headers right behind an end token, if most are; else all."""
    ended = [text.endswith(_END, 0, _rstrip(text, m.start())) for m in headers]
    if sum(ended[1:]) * 2 < len(ended) - 1:
        return headers
    return [m for index, m in enumerate(headers) if ended[index] or index == 0]


def _rstrip(text: str, end: int) -> int:
    """``end`` moved back over white space."""
    while end and text[end - 1].isspace():
        end -= 1
    return end


def _is_whole(text: str, start: int, limit: int) -> bool:
    """Whether a turn's end token, if it has one, is the last of its text up to ``limit``."""
    end = text.find(_END, start, limit)
    return end < 0 or not text[end + len(_END) : limit].strip()


def _turn(text: str, role: str, start: int, content_start: int, limit: int) -> Header:
    """The turn whose text runs up to ``limit``: it ends with the last end token in there."""
    end = text.rfind(_END, content_start, limit)
    if end < 0:
        return Header(role, start, content_start, limit, limit)
    return Header(role, start, content_start, end, end + len(_END))


def _extended(text: str, turn: Header, limit: int) -> Header:
    """The turn with all of its text up to ``limit``."""
    return _turn(text, turn.role, turn.start, turn.content_start, limit)


def _without_repeats(text: str, turns: list[Header]) -> list[Header]:
    """The first of two agent turns in a row is the text before it, if such pairs are rare."""
    agent = [turn.role == "assistant" for turn in turns]
    pairs = [i for i in range(1, len(turns) - 1) if agent[i] and agent[i + 1] and not agent[i - 1]]
    if not pairs or len(pairs) * 4 > sum(agent):
        return turns
    out: list[Header] = []
    for index, turn in enumerate(turns):
        if index in pairs:
            out.append(_extended(text, out.pop(), turn.end))
        else:
            out.append(turn)
    return out


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
