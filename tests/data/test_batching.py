"""The split of rows into micro-batches: complete, within its budget, and without effect."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchtune.models.llama2 import llama2

from sad_components.data import Batching, StepOrder, collate, collate_packed
from sad_components.data.transform import TokenizedTrajectory
from sad_components.spans import AGENT_KINDS

RNG = np.random.default_rng(0)
LENGTHS = [int(n) for n in RNG.integers(3, 40, 60)]
ROWS = [
    TokenizedTrajectory(
        RNG.integers(1, 50, n), RNG.integers(0, 4, n), np.arange(n), RNG.random(n) < 0.2, f"t{i}"
    )
    for i, n in enumerate(LENGTHS)
]
STEP = StepOrder(LENGTHS, 24, 0).step_rows(0)


def flat(batches):
    return [row for batch in batches for sequence in batch for row in sequence]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("max_tokens", [None, 20, 90])
@pytest.mark.parametrize("world", [1, 2, 5, 40])
def test_every_row_is_read_once(packing, max_tokens, world):
    batching = Batching(LENGTHS, 3, max_tokens=max_tokens, packing=packing)
    shares = [batching.micro_batches(STEP, rank, world) for rank in range(world)]
    assert sorted(row for share in shares for row in flat(share)) == sorted(STEP)


@pytest.mark.parametrize("packing", [False, True])
def test_only_a_single_long_row_is_over_the_budget(packing):
    batching = Batching(LENGTHS, 3, max_tokens=35, packing=packing)
    for batch in batching.micro_batches(STEP):
        sizes = [sum(LENGTHS[row] for row in sequence) for sequence in batch]
        assert len(batch) * max(sizes) <= 35 or batch == [[STEP[-1]]] or max(sizes) > 35
        assert max(sizes) <= max(LENGTHS[row] for row in STEP)


def test_without_a_budget_batch_size_counts_the_sequences():
    assert [len(b) for b in Batching([5] * 7, 3).micro_batches(range(7))] == [3, 3, 1]
    packed = Batching([6, 2, 3, 1], 1, packing=True).micro_batches([3, 1, 2, 0])
    assert packed == [[[0]], [[2, 1, 3]]]


def test_the_report_counts_padding_and_rows_over_the_budget():
    padded = Batching([2, 4], 2).describe([[0, 1]])
    assert padded == ["batches: 1 in 1 steps (padded), at most 8 positions each, 25.0% padding"]
    lines = Batching([2, 4, 9], 2, max_tokens=8).describe([[0, 1, 2]])
    assert "1 batches hold one row longer than max_tokens_per_batch (8)" in lines[1]
    packed = Batching([2, 2, 4], 2, packing=True).describe([[0, 1, 2]])
    assert "(packed), at most 8 positions each, 0.0% padding" in packed[0]


def test_packing_leaves_less_padding_than_padding_does():
    steps = [StepOrder(LENGTHS, 24, 0).step_rows(step) for step in range(3)]

    def share(packing):
        line = Batching(LENGTHS, 24, packing=packing).describe(steps)[0]
        return float(line.split(", ")[-1].removesuffix("% padding"))

    assert share(True) < share(False) / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is at least 1; got 0"),
        ({"max_tokens": 0}, "max_tokens is at least 1; got 0"),
        ({"packing": "yes"}, "packing is true or false; got 'yes'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Batching(LENGTHS, **options)


def test_places_say_where_each_row_lies():
    rows = ROWS[:4]
    batch = collate_packed([rows[:3], rows[3:]], pad_id=0, multiple_of=16)
    assert batch.tokens_BS.shape[1] % 16 == 0
    assert batch.num_tokens == sum(len(row) - 1 for row in rows)
    assert [place.sequence for place in batch.places] == [0, 0, 0, 1]
    for place, row in zip(batch.places, rows):
        here = (place.sequence, slice(place.start, place.stop))
        assert batch.tokens_BS[here].tolist() == row.tokens[:-1].tolist()
        assert batch.targets_BS[here].tolist() == row.tokens[1:].tolist()
        assert batch.span_ids_BS[here].tolist() == row.span_ids[1:].tolist()
        assert batch.steps_BS[here].tolist() == row.steps[1:].tolist()
        assert batch.branch_BS[here].tolist() == row.branch[1:].tolist()
        assert place.id == row.id


def test_packed_rows_are_read_as_if_alone():
    """Values and gradients of every token equal those of the padded batch."""
    torch.manual_seed(0)
    model = llama2(
        vocab_size=50, num_layers=2, num_heads=4, num_kv_heads=2, embed_dim=32,
        max_seq_len=64, intermediate_dim=48,
    ).double()  # fmt: skip
    rows = ROWS[:7]
    batching = Batching([len(row) for row in rows], 8, packing=True)
    order = sorted(range(7), key=lambda i: len(rows[i]))
    (sequences,) = batching.micro_batches(order)
    packed = collate_packed([[rows[i] for i in seq] for seq in sequences], 0)
    assert packed.packed
    assert len(packed.tokens_BS) < len(rows)
    assert collate(rows, 0).attention == {}
    found = {}
    for name, batch in (("padded", collate(rows, 0)), ("packed", packed)):
        logits = model(batch.tokens_BS, **batch.attention)
        agent = torch.isin(batch.span_ids_BS, torch.tensor([int(k) for k in AGENT_KINDS]))
        loss = torch.nn.functional.cross_entropy(logits[agent], batch.targets_BS[agent])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        by_row = {p.id: logits[p.sequence, p.start : p.stop] for p in batch.places}
        found[name] = (by_row, gradients)
    for id in found["padded"][0]:
        torch.testing.assert_close(found["packed"][0][id], found["padded"][0][id])
    for one, other in zip(found["packed"][1], found["padded"][1]):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-9)


def test_positions_start_anew_and_nobody_sees_another_row():
    batch = collate_packed([ROWS[:2], ROWS[2:3]], 0)
    attention = batch.attention
    for place in batch.places:
        here = slice(place.start, place.stop)
        length = place.stop - place.start
        assert attention["input_pos"][place.sequence, here].tolist() == list(range(length))
        seen = attention["mask"][place.sequence, here]
        assert seen[:, here].equal(torch.ones(length, length, dtype=torch.bool).tril())
        assert seen.sum() == seen[:, here].sum()
