"""Shuffled epochs and weighted mixtures: which rows each step reads."""

from __future__ import annotations

import doctest
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sad_components.data import Batching, StepOrder
from sad_components.data import order as order_module
from sad_components.data.order import largest_remainder

GROUPS = [0] * 12 + [1] * 5 + [2] * 3
LENGTHS = np.arange(20)[::-1] + 3


def mixture(weights=(1, 2, 1), global_batch=4, seed=0, **options):
    return StepOrder(LENGTHS, global_batch, seed, groups=GROUPS, weights=weights, **options)


def epoch(order, number):
    steps = range(number * order.steps_per_epoch, (number + 1) * order.steps_per_epoch)
    return [row for step in steps for row in order.step_rows(step)]


def test_the_order_of_earlier_versions_is_kept():
    """Runs are resumed in it: first and last step of two epochs, of numpy's own permutation."""
    order = StepOrder([1] * 10, 4, 7)
    for number in (0, 1):
        rows = np.random.default_rng([7, number]).permutation(10)
        for within in range(3):
            expected = sorted(rows[within * 4 : within * 4 + 4].tolist())
            assert order.step_rows(number * 3 + within) == expected
    assert order.step_rows(0) == [0, 1, 7, 8]
    assert order.settings() == {"seed": 7, "rows": 10, "rows_per_step": 4}


def test_an_epoch_is_shuffled_once(monkeypatch):
    order = StepOrder([1] * 1000, 1, 0)
    calls = Counter()
    shuffle = np.random.default_rng

    def counting(seed):
        calls[tuple(seed)] += 1
        return shuffle(seed)

    monkeypatch.setattr(np.random, "default_rng", counting)
    for step in range(1000):
        order.step_rows(step)
        order.step_rows(step + 1)  # what a recipe reads ahead
    assert calls == {(0, 0): 1, (0, 1): 1}


def test_sources_without_weights_are_read_as_one():
    plain = StepOrder(LENGTHS, 4, 0)
    assert epoch(StepOrder(LENGTHS, 4, 0, groups=GROUPS), 1) == epoch(plain, 1)


@pytest.mark.parametrize(
    ("weights", "shares"),
    [((1, 2, 1), [5, 10, 5]), ((0.6, 0.25, 0.15), [12, 5, 3]), ((1, 1, 1), [7, 7, 6])],
)
def test_each_source_gives_its_share_of_every_epoch(weights, shares):
    order = mixture(weights)
    for number in range(4):
        rows = epoch(order, number)
        assert len(rows) == len(LENGTHS)
        assert [sum(GROUPS[row] == g for row in rows) for g in range(3)] == shares


def test_a_source_is_walked_whole_before_a_row_comes_again():
    order = mixture()
    seen = Counter()
    for number in range(12):
        seen.update(epoch(order, number))
        for source in range(3):
            counts = [seen[row] for row in range(20) if GROUPS[row] == source]
            assert max(counts) - min(counts) <= 1, (number, source)
    assert epoch(order, 0) != epoch(order, 1)


def test_sources_are_mixed_within_an_epoch():
    firsts = {GROUPS[mixture(seed=seed, global_batch=1).step_rows(0)[0]] for seed in range(20)}
    assert firsts == {0, 1, 2}


def test_mixtures_depend_on_the_seed_alone_and_not_on_what_was_asked_before():
    forwards = [mixture().step_rows(step) for step in range(15)]
    order = mixture()
    assert [order.step_rows(step) for step in reversed(range(15))] == forwards[::-1]
    assert [mixture(seed=1).step_rows(step) for step in range(15)] != forwards
    for rows in forwards:
        assert rows == sorted(rows, key=lambda row: LENGTHS[row])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_a_mixture_s_steps(world):
    order, batching = mixture(), Batching(LENGTHS, 2)
    for step in range(10):
        shares = [batching.micro_batches(order.step_rows(step), r, world) for r in range(world)]
        read = [i for share in shares for batch in share for seq in batch for i in seq]
        assert sorted(read) == sorted(order.step_rows(step))


def test_a_mixture_s_shares_decide_its_rows():
    assert mixture().settings()["rows_per_source"] == [5, 10, 5]


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8), st.integers(0, 5000))
def test_shares_add_up_and_are_off_by_less_than_one(weights, total):
    shares = largest_remainder(weights, total)
    assert sum(shares) == total
    for share, weight in zip(shares, weights):
        assert abs(share - weight / sum(weights) * total) < 1


@pytest.mark.parametrize(
    ("groups", "weights", "message"),
    [
        (None, [1.0], "they need the source of each row"),
        ([0] * 19, [1.0], r"source of each of the 20 rows by an integer; got int64 of shape \(19,"),
        ([0.0] * 20, [1.0], "by an integer; got float64"),
        (GROUPS, [1, 0, 1], "a number above 0; got 0.0"),
        (GROUPS, [1, float("nan"), 1], "a number above 0; got nan"),
        (GROUPS, [1, 1], r"sources 0 to 1, each of them; got rows of \[0, 1, 2\]"),
        (GROUPS, [1, 1, 1, 1], "sources 0 to 3"),
        (GROUPS, [100, 100, 1], "a weight of 1 of 201 gives none: raise it"),
    ],
)
def test_sources_that_do_not_fit_are_refused(groups, weights, message):
    with pytest.raises(ValueError, match=message):
        StepOrder(LENGTHS, 4, 0, groups=groups, weights=weights)


def test_examples_in_docstrings():
    scope = {"StepOrder": StepOrder}
    result = doctest.testmod(order_module, extraglobs=scope)
    assert result.attempted
    assert not result.failed
