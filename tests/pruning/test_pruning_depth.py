"""Which layers stay, by place and by data."""

from __future__ import annotations

import pytest
import torch
from hf_families import write_reference

from sad_components.loss.functional import forward_kl
from sad_components.models import from_pretrained
from sad_components.pruning.depth import (
    layers_by_influence,
    layers_by_influence_again,
    layers_by_kl,
    layers_by_place,
)
from sad_components.pruning.importance import measure
from sad_components.pruning.parts import only_layers


@pytest.fixture
def model(tmp_path):
    folder = write_reference("smollm2", tmp_path / "teacher", num_hidden_layers=5)
    return from_pretrained(folder, dtype="fp32")


@pytest.mark.parametrize(
    ("how", "kept"),
    [("even", [0, 3, 5]), ("first", [0, 1, 2]), ("last", [3, 4, 5]), ("first-last", [0, 1, 5])],
)
def test_places_by_hand(how, kept):
    depth = layers_by_place(how, 6, 3)
    assert depth.layers == kept
    assert sorted([*kept, *(layer for layer, _ in depth.dropped)]) == list(range(6))


@pytest.mark.parametrize("how", ["even", "first", "last", "first-last"])
def test_all_layers_may_stay(how):
    assert layers_by_place(how, 4, 4).layers == [0, 1, 2, 3]
    assert layers_by_place(how, 4, 4).dropped == []


def test_least_influence_goes_first_and_of_equals_the_earlier():
    depth = layers_by_influence([0.9, 0.2, 0.5, 0.2, 0.1], 2)
    assert depth.layers == [0, 2]
    assert depth.dropped == [(4, 0.1), (1, 0.2), (3, 0.2)]


@torch.no_grad()
def make_idle(model, layer):
    model.layers[layer].attn.output_proj.weight.zero_()
    model.layers[layer].mlp.w2.weight.zero_()


@pytest.mark.parametrize("idle", [0, 3, 4])
def test_a_layer_that_does_nothing_goes_first(model, rows, idle):
    make_idle(model, idle)
    once = layers_by_influence(measure(model, rows).influence.tolist(), 3)
    again = layers_by_influence_again(model, rows, 3)
    kl = layers_by_kl(model, rows, 3)
    for depth in (once, again, kl):
        assert depth.dropped[0][0] == idle
        assert abs(depth.dropped[0][1]) < 1e-6
        assert depth.dropped[1][1] > 1e-3


@torch.no_grad()
def kl_of(model, rows, layers):
    total = tokens = 0.0
    for row, chosen in rows.batches(torch.device("cpu")):
        teacher = model(row)[chosen]
        with only_layers(model, layers):
            total += float(forward_kl(model(row)[chosen], teacher).sum())
        tokens += int(chosen.sum())
    return total / tokens


def test_kl_is_greedy_by_the_outputs(model, rows):
    depth = layers_by_kl(model, rows, 3)
    kept = list(range(5))
    for dropped, kl in depth.dropped:
        found = {i: kl_of(model, rows, [k for k in kept if k != i]) for i in kept}
        assert dropped == min(found, key=found.get)
        assert kl == pytest.approx(found[dropped], rel=1e-4)
        kept.remove(dropped)
    assert depth.layers == kept


def test_influence_is_measured_on_what_is_left(model, rows):
    depth = layers_by_influence_again(model, rows, 3)
    (first, _), (_, second) = depth.dropped
    with only_layers(model, [i for i in range(5) if i != first]):
        assert second == pytest.approx(float(measure(model, rows).influence.min()), rel=1e-5)


def test_the_model_is_left_as_it_was(model, rows, tokens):
    before = model.train()(tokens)
    layers_by_kl(model, rows, 2)
    layers_by_influence_again(model, rows, 2)
    assert model.training
    assert torch.equal(model(tokens), before)
