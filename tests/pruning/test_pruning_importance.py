"""Importances against plain ones, computed by taking units away."""

from __future__ import annotations

import pytest
import torch
from hf_families import write_reference
from torch.testing import assert_close

from sad_components.models import from_pretrained
from sad_components.pruning.importance import Rows, measure, norms_of

FAMILIES = ["smollm2", "qwen3-8b", "gpt2", "opt-350m"]


@pytest.fixture
def model(request, tmp_path):
    name = getattr(request, "param", "smollm2")
    return from_pretrained(write_reference(name, tmp_path / "teacher"), dtype="fp32", dropout=0.0)


@torch.no_grad()
def inputs_and_outputs(model, module, row):
    seen = []
    handle = module.register_forward_hook(lambda _m, args, out: seen.append((args[0], out)))
    model(row)
    handle.remove()
    return seen[0]


def rows_of(rows):
    return list(rows.batches(torch.device("cpu")))


def aggregated(per_row):
    """L2 over rows of means over positions."""
    return torch.stack(per_row).square().sum(0).sqrt()


@pytest.mark.parametrize("model", FAMILIES, indirect=True)
@torch.no_grad()
def test_heads_and_neurons_are_what_the_output_loses_without_them(model, rows):
    found = measure(model, rows)
    for unit, index, projection in (
        ("heads", 4, model.layers[1].attn.output_proj),
        ("neurons", 5, model.layers[1].mlp.w2),
    ):
        size = model.layers[1].attn.head_dim if unit == "heads" else 1
        per_row = []
        for row, chosen in rows_of(rows):
            inputs, whole = inputs_and_outputs(model, projection, row)
            without = inputs.clone()
            without[..., index * size : (index + 1) * size] = 0
            per_row.append((whole - projection(without))[chosen].norm(dim=-1).mean())
        assert_close(getattr(found, unit)[1, index], aggregated(per_row), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", FAMILIES, indirect=True)
@torch.no_grad()
def test_channels_are_what_the_norms_say(model, rows):
    norms = norms_of(model)
    assert len(norms) == 2 * len(model.layers) + (0 if "norm" not in norms else 1) + (
        1 if "norm.final" in norms else 0
    )
    per_row, shares = [], []
    for row, chosen in rows_of(rows):
        seen = [inputs_and_outputs(model, norm, row) for norm in norms.values()]
        per_row.append(sum(output[chosen].abs().mean(0) for _, output in seen))
        squared = seen[0][0][chosen].square()
        shares.append(squared / squared.sum(-1, keepdim=True))
    found = measure(model, rows)
    assert_close(found.channels, aggregated(per_row))
    assert_close(found.energy[next(iter(norms))], torch.cat(shares).mean(0))
    assert_close(found.energy[next(iter(norms))].sum(), torch.tensor(1.0))


@torch.no_grad()
def test_influence_is_the_mean_cosine_distance(model, rows):
    cosines = []
    for row, chosen in rows_of(rows):
        before, after = inputs_and_outputs(model, model.layers[2], row)
        cosines.append(torch.cosine_similarity(before[chosen], after[chosen], dim=-1))
    assert_close(measure(model, rows).influence[2], 1 - torch.cat(cosines).mean())


@torch.no_grad()
def test_a_layer_that_does_nothing_has_no_influence(model, rows):
    model.layers[1].attn.output_proj.weight.zero_()
    model.layers[1].mlp.w2.weight.zero_()
    influence = measure(model, rows).influence
    assert influence[1].abs() < 1e-9
    assert influence[[0, 2]].min() > 1e-3


def test_only_positions_that_predict_the_agents_tokens_count(model, rows):
    everything = Rows(rows.rows, tokens="all")
    agent = sum(int(chosen.sum()) for _, chosen in rows_of(rows))
    wanted = sum(int(((row.span_ids == 1) | (row.span_ids == 2))[1:].sum()) for row in rows.rows)
    assert (measure(model, rows).num_tokens, agent) == (wanted, wanted)
    found = measure(model, everything)
    assert found.num_tokens == sum(len(row) - 1 for row in rows.rows)
    assert not torch.equal(found.heads, measure(model, rows).heads)


def test_the_model_is_left_as_it_was(model, rows, tokens):
    before = model.train()(tokens)
    measure(model, rows)
    assert model.training
    assert torch.equal(model(tokens), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_rows_are_needed_and_tokens_are_named(rows):
    with pytest.raises(ValueError, match="at least one row"):
        Rows([])
    with pytest.raises(ValueError, match=r"'agent', 'all'.*'act'"):
        Rows(rows.rows, tokens="act")
