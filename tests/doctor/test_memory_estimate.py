"""The memory estimate against real figures."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from loading import load_module
from omegaconf import OmegaConf
from torch.nn import functional as F

from sad_components.data import Batching
from sad_components.loss import FusedStructuredKDLoss
from sad_components.models import from_scratch
from sad_components.models.quantized import Scheme
from sad_components.training import memory
from sad_components.training.activations import checkpoint_layers_
from sad_components.training.live_bytes import FusedAttention, LiveBytes, StepShape, step_bytes
from sad_components.training.memory import (
    MemoryEstimate,
    RunShape,
    largest_step,
    state_bytes,
)
from sad_components.training.switches import prepare_qat_

CONFIG = {
    **{"model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128},
    **{"num_hidden_layers": 6, "num_attention_heads": 4, "max_position_embeddings": 256},
    "tie_word_embeddings": True,
}


def test_saved_activations_are_what_all_layers_keep():
    """One and two layers, extrapolated, against all six counted on real tensors."""
    shape = StepShape(rows=2, width=128, supervised=256)  # all positions: the last layer is whole
    with torch.device("meta"):
        expected = step_bytes(from_scratch(CONFIG, device="meta"), shape)
    model = from_scratch(CONFIG).train()
    model.unembed = lambda hidden: model.norm(hidden)
    tokens = torch.zeros(2, 128, dtype=torch.int64)
    with LiveBytes() as live, FusedAttention():
        hidden = model(tokens)
    assert hidden.shape == (2, 128, 64)
    assert expected.saved == pytest.approx(live.now, rel=0.02)


def test_checkpointed_layers_keep_their_inputs():
    shape = StepShape(rows=2, width=128, supervised=256)
    with torch.device("meta"):
        meta = from_scratch(CONFIG, device="meta")
        whole, expected = (step_bytes(meta, shape, checkpointed=c) for c in (False, True))
    model = from_scratch(CONFIG).train()
    model.unembed = lambda hidden: model.norm(hidden)
    checkpoint_layers_(model)
    with LiveBytes() as live, FusedAttention():
        hidden = model(torch.zeros(2, 128, dtype=torch.int64))
    assert hidden.shape == (2, 128, 64)
    assert expected.saved == pytest.approx(live.now, rel=0.05)
    assert expected.saved < whole.saved / 3
    assert expected.saved + expected.transient < whole.saved


def test_what_qat_keeps_is_counted():
    """Rounded weights and what their gradients need, as all layers keep them on real tensors."""
    shape = StepShape(rows=2, width=128, supervised=256)
    run = RunShape(shape, 0, 64, qat=Scheme("8da4w"))
    meta = from_scratch(CONFIG, device="meta")
    plain, expected = step_bytes(meta, shape), memory._student_step(meta, run)
    assert not any("FakeQuantized" in type(m).__name__ for m in meta.modules())  # left as it was
    model = from_scratch(CONFIG).train()
    model.unembed = lambda hidden: model.norm(hidden)
    prepare_qat_(model, Scheme("8da4w"))
    with LiveBytes() as live, FusedAttention():
        hidden = model(torch.zeros(2, 128, dtype=torch.int64))
    assert hidden.shape == (2, 128, 64)
    assert expected.saved == pytest.approx(live.now, rel=0.05)
    assert expected.saved > 1.2 * plain.saved


def estimated(device: str = "cpu", world: int = 1, **switches) -> MemoryEstimate:
    """Of a small model under switches, as the doctor makes it."""
    cfg, where = OmegaConf.create(switches), torch.device(device)
    shape = StepShape(rows=2, width=128, supervised=100)
    run = RunShape.read(cfg, shape, 0, 64, torch.float32, where, world)
    student, teacher = (from_scratch(CONFIG, device="meta") for _ in range(2))
    optimizer = partial(torch.optim.AdamW, lr=1e-3)
    return memory.estimate(student, teacher, FusedStructuredKDLoss(), optimizer, run, where)


def test_switches_of_saving_and_of_spreading_are_in_the_estimate():
    plain = estimated()
    assert "copy for async_save" not in estimated(async_save=True).parts  # nothing is saved
    beside = estimated(async_save=True, save_every_n_steps=5)
    state = plain.parts["optimizer state"]  # AdamW: two numbers a weight
    assert beside.parts["copy for async_save"] == 1.5 * state
    assert estimated("cuda", async_save=True, save_every_n_steps=5).parts == estimated("cuda").parts
    alone, shared = estimated("cuda"), estimated("cuda", 2)
    weights = [found.parts["student weights"] for found in (alone, shared)]
    assert weights[1] == weights[0] // 2
    offloaded = estimated("cuda", 2, fsdp_cpu_offload=True)
    assert not {"student weights", "teacher weights", "optimizer state"} & offloaded.parts.keys()
    assert offloaded.parts["gathered parameters"] == shared.parts["gathered parameters"]
    assert offloaded.total < shared.total


def test_offloaded_activations_are_those_of_two_layers():
    plain, offloaded = estimated("cuda"), estimated("cuda", activation_offloading=True)
    shape = StepShape(rows=2, width=128, supervised=100)
    kept = [
        memory._student_step(from_scratch(CONFIG, device="meta"), RunShape(shape, 0, 64, **switch))
        for switch in ({}, {"offloaded": True})
    ]
    assert kept[1].saved == pytest.approx(kept[0].saved / 3, rel=0.01)  # of six layers
    assert offloaded.total < plain.total


def test_live_bytes_forget_what_is_freed():
    with LiveBytes() as live:
        kept = torch.zeros(1000)
        F.relu(kept)
    assert (live.now, live.peak) == (4000, 8000)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (partial(torch.optim.AdamW, lr=1e-3), 8),
        (partial(torch.optim.SGD, lr=1e-3), 0),
        (partial(torch.optim.SGD, lr=1e-3, momentum=0.9), 4),
    ],
)
def test_optimizer_state_per_parameter(optimizer, expected):
    assert state_bytes(optimizer, torch.float32) == expected


def test_largest_step_is_the_batch_with_most_positions():
    batching = Batching([10, 20, 30, 40], batch_size=2)
    assert largest_step(batching, [[0, 1], [2, 3]], 0.5) == StepShape(2, 40, 40)


@pytest.mark.slow
def test_estimate_is_within_15_percent_of_the_measured_peak():
    bench = load_module("benchmarks/bench_memory_estimate.py")
    for width, layers, rows in ((256, 6, 4), (384, 8, 2), (640, 12, 1)):
        found = bench.compare(width, layers, rows)
        assert abs(found["difference"]) < 0.15, found
