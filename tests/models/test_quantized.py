"""Quantised folders: what QAT trained comes back, exactly; what does not fit is named."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchao.quantization import quantize_
from torchao.quantization.qat import QATConfig

from sad_components.evaluation.decoding import CachedDecoder, FullDecoder, Prefix
from sad_components.models import from_pretrained, from_scratch, save_student
from sad_components.models.linear_layers import linear_layers
from sad_components.models.lora import add_lora_
from sad_components.models.quantized import (
    SCHEMES,
    Scheme,
    load_quantized,
    quantize_folder,
    quantize_linears_,
)

LLAMA = {
    **{"model_type": "llama", "vocab_size": 61, "hidden_size": 64, "intermediate_size": 96},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"max_position_embeddings": 64, "tie_word_embeddings": True},
}
UNTIED = {**LLAMA, "tie_word_embeddings": False}
GPT2 = {
    **{"model_type": "gpt2", "vocab_size": 61, "n_embd": 64, "n_head": 4, "n_layer": 2},
    **{"n_positions": 64, "n_inner": 96},
}
TOKENS = torch.arange(40).view(2, 20)


def saved(tmp_path, config=LLAMA, dtype="fp32"):
    model = from_scratch(config, seed=3, dtype=dtype, dropout=0.0)
    save_student(model, tmp_path / "plain")
    return model, tmp_path / "plain"


@torch.no_grad()
def logits(model):
    return model.eval()(TOKENS)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("config", [LLAMA, UNTIED, GPT2], ids=["tied", "untied", "gpt2"])
def test_reloaded_computes_what_fake_quantisation_did(tmp_path, config, name, dtype):
    model, plain = saved(tmp_path, config, dtype)
    exact = logits(model)
    scheme = Scheme(name, 16)
    layers = linear_layers(model)
    quantize_(model, QATConfig(scheme.torchao_config(), step="prepare"), lambda _, n: n in layers)
    trained_as = logits(model)
    quantize_folder(plain, tmp_path / "quantized", scheme)
    loaded = load_quantized(tmp_path / "quantized")
    torch.testing.assert_close(logits(loaded), trained_as, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(trained_as, exact, atol=1e-3)  # it is quantised at all


def test_a_policy_reads_it_token_by_token(tmp_path):
    _, plain = saved(tmp_path)
    model = load_quantized(quantize_folder(plain, tmp_path / "q", Scheme("int4")))
    prefixes = [Prefix(0, [3, 1, 4]), Prefix(1, [1, 5, 9, 2, 6])]
    expected = FullDecoder(model).logits(prefixes)
    cached = CachedDecoder(model)
    cached.logits([Prefix(0, [3, 1]), Prefix(1, [1, 5, 9])])
    torch.testing.assert_close(cached.logits(prefixes), expected, atol=1e-5, rtol=1e-5)


def test_folder_holds_half_a_byte_a_weight_and_the_scheme(tmp_path):
    _, plain = saved(tmp_path)
    folder = quantize_folder(plain, tmp_path / "q", Scheme("8da4w", 32))
    tensors = load_file(folder / "model.safetensors")
    packed = tensors["layers.1.mlp.w1.weight.packed"]
    assert packed.dtype == torch.uint8
    assert packed.shape == (96, 32)
    assert tensors["layers.1.mlp.w1.weight.scale"].shape == (96, 2)
    assert "layers.1.mlp.w1.weight" not in tensors
    assert tensors["tok_embeddings.weight"].dtype == torch.float32
    described = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (described["name"], described["group_size"]) == ("8da4w", 32)
    with pytest.raises(ValueError, match="holds quantised weights"):
        from_pretrained(folder)


def test_head_stays_plain():
    model = quantize_linears_(from_scratch(UNTIED), Scheme("int4"))
    assert type(model.output.weight) is torch.nn.Parameter
    assert type(model.layers[0].mlp.w1.weight) is not torch.nn.Parameter
    assert not any(p.requires_grad for p in model.parameters())


def test_plain_folder_is_no_quantised_one(tmp_path):
    _, plain = saved(tmp_path)
    with pytest.raises(ValueError, match="holds no model quantised here"):
        load_quantized(plain)


def changed(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layers.0.attn.q_proj.weight.scale"), r"q_proj\.weight\.scale .*nothing"),
        (
            lambda t: t.update({"layers.0.mlp.w1.weight.packed": torch.zeros(96, 31)}),
            r"w1\.weight\.packed as torch\.uint8 \[96, 32\]; got torch\.float32 \[96, 31\]",
        ),
        (lambda t: t.pop("norm.scale"), "do not fit its config.json"),
        (lambda t: t.update({"stranger": torch.zeros(1)}), "do not fit its config.json"),
    ],
)
def test_damaged_files_are_named(tmp_path, change, message):
    _, plain = saved(tmp_path)
    folder = quantize_folder(plain, tmp_path / "q", Scheme("int4"))
    changed(folder, change)
    with pytest.raises(ValueError, match=message):
        load_quantized(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("quant_method", "torchao", "holds no model quantised here"),
        ("name", "int3", "a scheme is one of 8da4w, int4; got 'int3'"),
        ("group_size", 0, "positive even integer; got 0"),
        ("group_size", 16, "q_proj.weight.scale"),
    ],
)
def test_another_scheme_in_the_config_is_refused(tmp_path, key, value, message):
    _, plain = saved(tmp_path)
    folder = quantize_folder(plain, tmp_path / "q", Scheme("int4"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_quantized(folder)


def test_group_size_must_divide_every_layer():
    with pytest.raises(ValueError, match=r"48 does not divide .*64\); use one of \[8, 16, 32\]"):
        quantize_linears_(from_scratch(LLAMA), Scheme("int4", 48))
    with pytest.raises(ValueError, match="positive even integer; got 31"):
        Scheme("int4", 31)


def test_adapters_and_wide_dtypes_are_refused():
    with pytest.raises(ValueError, match="adapter parameters"):
        quantize_linears_(add_lora_(from_scratch(LLAMA), ["q_proj"]), Scheme("int4"))
    with pytest.raises(ValueError, match="fp32 or bf16"):
        quantize_linears_(from_scratch(LLAMA, dtype="fp64"), Scheme("int4"))
