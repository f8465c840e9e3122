"""Hand-written transcripts as lists of parts, so that a test says what each stretch must be."""

from __future__ import annotations

import pytest

from sad_components.formats.registry import get_format, segment, to_trajectory
from sad_components.spans import SpanKind, check_cover

KINDS = {
    "c": (SpanKind.CONTEXT,),
    "r": (SpanKind.REASON,),
    "a": (SpanKind.ACT,),
    "o": (SpanKind.OBSERVATION,),
    "x": (SpanKind.CONTEXT, SpanKind.OBSERVATION),  # not supervised, either will do
}


def _compare(text, spans, parts):
    check_cover(spans, len(text))
    position = 0
    for letter, piece in parts:
        for span in spans:
            start, end = max(span.start, position), min(span.end, position + len(piece))
            if start < end:
                assert span.kind in KINDS[letter], (
                    f"{text[start:end]!r} is {span.kind.label}, expected {letter!r}"
                )
        position += len(piece)


@pytest.fixture
def assert_text():
    """``assert_text(format, [(kind, text), ..])`` cuts the joined text; returns its spans."""

    def check(name, parts):
        text = "".join(piece for _, piece in parts)
        spans = get_format(name).segment_text(text)
        _compare(text, spans, parts)
        return spans

    return check


@pytest.fixture
def assert_turns():
    """``assert_turns(format, [(role, [(kind, text), ..]), ..])``; returns spans per message.

    A role may be a dict: the message's other keys, its role among them.
    """

    def check(name, turns):
        messages = []
        for role, parts in turns:
            keys = dict(role) if isinstance(role, dict) else {"role": role}
            messages.append({**keys, "content": "".join(piece for _, piece in parts)})
        trajectory = to_trajectory({"messages": messages}, get_format(name))
        cut = segment(trajectory)
        for message, spans, (_, parts) in zip(messages, cut, turns, strict=True):
            _compare(message["content"], spans, parts)
        return cut

    return check
