"""Padding, shifting, and who reads which row."""

from __future__ import annotations

import numpy as np
import pytest

from sad_components.data import StepOrder, collate, collate_packed
from sad_components.data import batch as batch_module
from sad_components.data.batch import PADDING
from sad_components.data.transform import TokenizedTrajectory
from sad_components.loss import LossSpec, SpanLoss

SPEC = LossSpec(reason=SpanLoss(), act=SpanLoss())


def row(kinds, id="r"):
    """Tokens 10, 11, .. of the given kinds."""
    n = len(kinds)
    return TokenizedTrajectory(
        np.arange(10, 10 + n), np.array(kinds), np.arange(n), np.arange(n) == 1, id
    )


def test_targets_are_shifted_and_carry_the_kind_of_what_is_predicted():
    batch = collate([row([0, 1, 2, 3]), row([0, 2], "s")], pad_id=7)
    assert batch.tokens_BS.tolist() == [[10, 11, 12], [10, 7, 7]]
    assert batch.targets_BS.tolist() == [[11, 12, 13], [11, 7, 7]]
    assert batch.span_ids_BS.tolist() == [[1, 2, 3], [2, PADDING, PADDING]]
    assert batch.steps_BS.tolist() == [[1, 2, 3], [1, 0, 0]]
    assert batch.branch_BS.tolist() == [[True, False, False], [True, False, False]]
    assert batch.ids == ["r", "s"]
    assert batch.num_tokens == 4


def test_what_follows_the_last_supervised_target_is_dropped():
    rows = [row([0, 1, 2, 3, 0, 3]), row([0, 1, 3])]
    assert collate(rows, 0, SPEC).tokens_BS.tolist() == [[10, 11], [10, 0]]
    everything = LossSpec(reason=SpanLoss(), act=SpanLoss(), observation=SpanLoss())
    assert collate(rows, 0, everything).tokens_BS.shape == (2, 5)
    act_only = LossSpec(act=SpanLoss())
    assert collate([row([0, 2, 1, 1])], 0, act_only).tokens_BS.tolist() == [[10]]


def test_an_epoch_reads_every_row_once_and_the_next_in_another_order():
    order = StepOrder(range(100, 123), global_batch=4, seed=3)
    assert order.steps_per_epoch == 6
    epochs = [[order.step_rows(s) for s in range(e * 6, e * 6 + 6)] for e in (0, 1)]
    for epoch in epochs:
        assert sorted(i for rows in epoch for i in rows) == list(range(23))
        assert [len(rows) for rows in epoch] == [4, 4, 4, 4, 4, 3]
    assert epochs[0] != epochs[1]
    assert epochs[0][0] == StepOrder(range(100, 123), 4, 3).step_rows(0)
    assert epochs[0][0] != StepOrder(range(100, 123), 4, 4).step_rows(0)


def test_rows_of_a_step_come_by_length():
    lengths = [5, 1, 9, 3]
    order = StepOrder(lengths, 4, 0)
    assert [lengths[i] for i in order.step_rows(0)] == [1, 3, 5, 9]


def test_a_step_reads_at_least_one_row():
    with pytest.raises(ValueError, match="at least one row; got 0"):
        StepOrder([1], 0, 0)


def test_packed_rows_on_a_cpu_get_a_dense_mask_also_beside_a_gpu(monkeypatch):
    """torchtune's own mask lies on a machine's GPU, whatever the device of the batch."""

    def on_the_gpu(lengths):
        raise AssertionError("the mask of a CPU's batch would lie on the GPU")

    monkeypatch.setattr(batch_module, "packed_block_causal_mask", on_the_gpu)
    batch = collate_packed([[row([0, 1, 2]), row([0, 2, 2], "s")]], pad_id=7)
    mask = batch.attention["mask"]
    assert mask.device.type == "cpu"
    assert mask[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
