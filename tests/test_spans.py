"""The span vocabulary: covering, merging, names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sad_components.spans import AGENT_KINDS, Span, SpanKind, check_cover, merge

R, A, O, C = SpanKind.REASON, SpanKind.ACT, SpanKind.OBSERVATION, SpanKind.CONTEXT  # noqa: E741


def test_kinds_are_the_integers_that_tensors_hold():
    assert [int(k) for k in (C, R, A, O)] == [0, 1, 2, 3]
    assert {R, A} == AGENT_KINDS


@pytest.mark.parametrize("name", ["reason", "REASON", 1, R])
def test_parse_takes_labels_and_integers(name):
    assert SpanKind.parse(name) is R


def test_parse_names_the_labels():
    with pytest.raises(ValueError, match="context, reason, act, observation; got 'thought'"):
        SpanKind.parse("thought")


def test_check_cover_accepts_a_cover_and_the_empty_text():
    check_cover([Span(0, 2, R), Span(2, 5, A)], 5)
    check_cover([], 0)


@pytest.mark.parametrize(
    ("spans", "length", "message"),
    [
        ([Span(1, 5, R)], 5, "starts at character 0"),
        ([Span(0, 2, R), Span(3, 5, A)], 5, "starts at character 2"),
        ([Span(0, 3, R), Span(2, 5, A)], 5, "starts at character 3"),
        ([Span(0, 0, R), Span(0, 5, A)], 5, "non-empty"),
        ([Span(0, 4, R)], 5, "cover all 5 characters, but they end at 4"),
        ([], 1, "cover all 1 characters"),
    ],
)
def test_check_cover_says_what_is_wrong(spans, length, message):
    with pytest.raises(ValueError, match=message):
        check_cover(spans, length)


def test_merge_joins_equal_neighbours_only():
    spans = [Span(0, 2, R, 1), Span(2, 4, R, 1), Span(4, 4, A, 1), Span(4, 6, A, 1)]
    assert merge(spans) == [Span(0, 4, R, 1), Span(4, 6, A, 1)]
    steps_differ = [Span(0, 2, R, 1), Span(2, 4, R, 2)]
    assert merge(steps_differ) == steps_differ


def test_merge_keeps_a_branch_where_it_is():
    spans = [Span(0, 2, R, 1, True), Span(2, 4, R, 1), Span(4, 6, R, 1, True)]
    assert merge(spans) == [Span(0, 4, R, 1, True), Span(4, 6, R, 1, True)]


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(SpanKind), st.integers(0, 2))))
def test_merging_changes_no_character(pieces):
    spans, position = [], 0
    for width, kind, step in pieces:
        spans.append(Span(position, position + width, kind, step))
        position += width
    merged = merge(spans)
    check_cover(merged, position)
    assert _characters(merged) == _characters(spans)
    assert merge(merged) == merged


def test_shifted_moves_both_ends():
    assert Span(1, 3, A, 2, True).shifted(10) == Span(11, 13, A, 2, True)


def _characters(spans):
    return [(s.kind, s.step) for s in spans for _ in range(s.end - s.start)]
