"""Spans in random places: the same counts, the same tokens, the same places on every run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sad_components.data import SpanTokenizer
from sad_components.data.reading import describe_transform
from sad_components.data.shuffle import shuffle_spans
from sad_components.data.transform import IGNORE
from sad_components.loss import LossSpec, SpanLoss
from sad_components.spans import AGENT_KINDS, SpanKind
from sad_components.trajectory import Message, Trajectory

#: Its second turn acts without a thought: the branch token is an action's.
SPARSE = Trajectory(
    [
        Message("user", "Your task is to: find a cup."),
        Message("assistant", "Thought: It may be in drawer 1.\nAction: open drawer 1"),
        Message("user", "You see a cup."),
        Message("assistant", "Action: take cup"),
    ],
    id="sparse",
    format="react",
)


@pytest.fixture
def transform(tokenizer):
    return SpanTokenizer(tokenizer, style="plain", shuffle_spans=3)


def test_counts_per_kind_and_step_stay_while_places_change(transform, react):
    trajectory = react(4)
    (real,), (row,) = (t.rows(trajectory) for t in (transform.with_real_spans(), transform))
    assert np.array_equal(row.tokens, real.tokens)
    assert not np.array_equal(row.span_ids, real.span_ids)
    marks = [np.stack([r.span_ids, r.steps, r.branch], 1).tolist() for r in (real, row)]
    assert sorted(marks[0][1:]) == sorted(marks[1][1:])
    assert marks[0][0] == marks[1][0]


def test_labels_follow_the_shuffled_spans(transform, react):
    (row,) = transform.rows(react(4))
    agent = np.isin(row.span_ids, list(AGENT_KINDS))
    assert np.array_equal(row.labels != IGNORE, agent)
    assert np.array_equal(row.labels[agent], row.tokens[agent])
    sample = transform(react(4).to_dict())
    assert sample["labels"] == row.labels.tolist()
    assert sample["span_ids"] == row.span_ids.tolist()


def test_any_place_but_the_first_may_get_any_kind(transform, react):
    taken = np.zeros(4)
    for i in range(30):
        (real,) = transform.with_real_spans().rows(react(3, id=str(i)))
        shuffled = shuffle_spans(real, i)
        taken += np.bincount(real.span_ids[shuffled.span_ids == SpanKind.ACT], minlength=4)
    assert (taken > 0).all()


@pytest.mark.parametrize("branch", ["reason", "own"])
def test_the_loss_counts_as_many_tokens_per_kind(transform, branch):
    """A branch mark moves with its kind, so that the action that it makes REASON's stays one."""
    spec = LossSpec(reason=SpanLoss(), act=SpanLoss(), branch=branch)
    (real,), (row,) = (t.rows(SPARSE) for t in (transform.with_real_spans(), transform))
    assert (real.branch & (real.span_ids == SpanKind.ACT)).any()
    counts = [
        spec.count(torch.from_numpy(r.span_ids[1:].astype(int)), torch.from_numpy(r.branch[1:]))
        for r in (real, row)
    ]
    assert counts[0].tolist() == counts[1].tolist()


def test_places_depend_on_the_seed_and_the_tokens_alone(transform, tokenizer, react):
    (row,) = transform.rows(react(4))
    (again,) = transform.rows(react(4, id="another"))
    assert np.array_equal(row.span_ids, again.span_ids)
    other_seed = SpanTokenizer(tokenizer, style="plain", shuffle_spans=4).rows(react(4))[0]
    assert not np.array_equal(row.span_ids, other_seed.span_ids)


def test_rows_are_cut_before_their_spans_move(tokenizer, react):
    cut = SpanTokenizer(tokenizer, style="plain", shuffle_spans=0, max_seq_len=70)
    (real,), (row,) = (t.rows(react(8)) for t in (cut.with_real_spans(), cut))
    assert row.truncated == real.truncated > 0
    assert np.array_equal(row.tokens, real.tokens)


def test_stored_rows_of_one_are_not_taken_for_the_other(transform):
    shuffled, real = (describe_transform(t) for t in (transform, transform.with_real_spans()))
    assert (shuffled.pop("shuffle_spans"), real.pop("shuffle_spans")) == (3, None)
    assert shuffled == real


@pytest.mark.parametrize("seed", [-1, True, "yes", 0.5])
def test_a_bad_seed_is_refused(tokenizer, seed):
    with pytest.raises(ValueError, match="shuffle_spans is a seed, an integer >= 0, or null; got"):
        SpanTokenizer(tokenizer, shuffle_spans=seed)
