"""Folders in torchao's formats: every scheme comes back as it was, or says why it does not."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import distance, logits, tiny_llama

from sad_components.models.families import hf_config_of
from sad_components.models.quantized import load_quantized, quantized_scheme
from sad_components.models.torchao_folders import (
    TORCHAO_SCHEMES,
    _flat,
    quantize_torchao_,
    save_torchao_folder,
)

#: Relative error of the logits that a scheme may cost; what this CPU cannot run is not in it.
FLOORS = {
    "float8_weight_only": 0.06,
    "int8_weight_only": 0.02,
    "int8_dynamic": 0.03,
    "int4_weight_only": 0.3,
    "8da8w": 0.03,
}


def written(scheme: str, folder, dtype: str = "fp32"):
    model = tiny_llama(dtype)
    config = {**hf_config_of(model), "torch_dtype": "float32"}
    return save_torchao_folder(quantize_torchao_(model, scheme), scheme, config, folder), model


@pytest.mark.parametrize("scheme", TORCHAO_SCHEMES)
def test_comes_back_bit_for_bit(scheme, tmp_path):
    folder, model = written(scheme, tmp_path / "q")
    again = load_quantized(folder)
    state = again.state_dict()
    for name, value in model.state_dict().items():
        assert type(state[name]) is type(value)
        found, stored = _flat(state[name], name), _flat(value, name)
        assert found.keys() == stored.keys()
        assert all(torch.equal(found[part], stored[part]) for part in stored)
    if scheme in FLOORS:
        assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("scheme", FLOORS)
def test_costs_little_and_something(scheme, tmp_path):
    folder, _ = written(scheme, tmp_path / "q")
    error = distance(logits(load_quantized(folder)), logits(tiny_llama()))
    assert 0 < error < FLOORS[scheme]


@pytest.mark.parametrize("scheme", TORCHAO_SCHEMES)
def test_files_hold_no_pickle_and_are_smaller(scheme, tmp_path):
    folder, model = written(scheme, tmp_path / "q")
    assert {f.name for f in folder.iterdir()} == {"config.json", "model.safetensors"}
    stored = load_file(folder / "model.safetensors")
    name = "layers.0.mlp.w1.weight"
    size = sum(t.nbytes for k, t in stored.items() if k.startswith(name))
    assert size < 0.4 * model.layers[0].mlp.w1.weight.numel() * 4
    assert quantized_scheme(json.loads((folder / "config.json").read_text())) == scheme


def test_other_tensors_are_named(tmp_path):
    folder, _ = written("int8_weight_only", tmp_path / "q")
    file = folder / "model.safetensors"
    stored = load_file(file)
    gone = next(k for k in stored if k.startswith("layers.1.attn.q_proj.weight."))
    save_file({k: v for k, v in stored.items() if k != gone}, file)
    with pytest.raises(ValueError, match=f"must hold {gone} as .* got nothing"):
        load_quantized(folder)
    save_file({**stored, gone: stored[gone].to(torch.float64)}, file)
    with pytest.raises(ValueError, match=f"{gone} as .*got torch.float64"):
        load_quantized(folder)


def test_unknown_scheme_and_layers_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"a scheme is one of .*got 'int3'"):
        quantize_torchao_(tiny_llama(), "int3")
    narrow = tiny_llama(hidden_size=8, num_attention_heads=2, num_key_value_heads=1)
    with pytest.raises(ValueError, match=r"int8_dynamic left layers.0.* as it was"):
        quantize_torchao_(narrow, "int8_dynamic")
    folder, _ = written("8da8w", tmp_path / "q")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["name"] = "int3"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"a scheme is one of .*got 'int3'"):
        load_quantized(folder)
