"""Adapters written for PEFT, and merged students, compute in transformers what they do here."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hf_families import write_reference
from peft import PeftModel
from torch.testing import assert_close
from torchtune.modules.peft import LoRALinear
from transformers import AutoModelForCausalLM

from sad_components.models import from_scratch, lora_cut_student, lora_from_pretrained, save_student
from sad_components.models.families import FAMILIES
from sad_components.models.lora import (
    adapters_of,
    add_lora_,
    base_state_dict,
    merged_state_dict,
    trained_parameters,
)
from sad_components.models.peft_format import peft_adapter, save_peft_adapter

TOKENS = torch.arange(24).reshape(2, 12)
ALL = ["q_proj", "k_proj", "v_proj", "output_proj"]


def trained_a_little(model):
    """``model`` with adapters that do something."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@torch.no_grad()
def in_transformers(folder, adapter=None):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = model if adapter is None else PeftModel.from_pretrained(model, adapter)
    return model.eval()(TOKENS).logits


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("gpt2", {"lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True}),
        ("gpt2-untied-narrow", {"lora_attn_modules": ALL}),
        ("opt-350m", {"lora_attn_modules": ALL, "apply_lora_to_mlp": True}),
        ("llama3.2", {"lora_attn_modules": ALL, "apply_lora_to_mlp": True}),
        ("llama3", {"lora_attn_modules": ["k_proj"], "apply_lora_to_output": True}),
        ("mistral", {"lora_attn_modules": ["q_proj"]}),
        ("qwen2.5-0.5b", {"lora_attn_modules": ["k_proj", "v_proj"], "apply_lora_to_mlp": True}),
        ("qwen3-8b", {"lora_attn_modules": ALL, "apply_lora_to_mlp": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_both_folders_equal_the_student(name, where, use_dora, tmp_path):
    base = write_reference(name, tmp_path / "base")
    sizes = {"lora_rank": 3, "lora_alpha": 5, "use_dora": use_dora}
    model = lora_from_pretrained(path=base, dropout=0.0, dtype="fp32", **where, **sizes)
    trained_a_little(model)
    ours = model(TOKENS).detach()
    adapter = save_peft_adapter(model, tmp_path / "adapter", base)
    merged = save_student(model, tmp_path / "merged", state_dict=merged_state_dict(model))
    assert (in_transformers(base) - ours).abs().max() > 0.1
    assert_close(in_transformers(base, adapter), ours, atol=1e-4, rtol=0)
    assert_close(in_transformers(merged), ours, atol=1e-4, rtol=0)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert config["use_dora"] is use_dora


def test_merging_leaves_the_model_as_it_is(tmp_path):
    sizes = {"hidden_size": 64, "num_attention_heads": 4}
    base = write_reference("smollm2", tmp_path / "base", **sizes)
    model = lora_from_pretrained(["q_proj"], path=base, quantize_base=True, dtype="fp32")
    trained_a_little(model)
    before, logits = model.state_dict(), model(TOKENS).detach()
    merged = merged_state_dict(model)
    assert merged.keys() == base_state_dict(model).keys()
    assert not torch.equal(
        merged["layers.0.attn.q_proj.weight"], before["layers.0.attn.q_proj.weight"]
    )
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert torch.equal(model(TOKENS), logits)


def test_a_cut_student_with_adapters(tmp_path):
    base = write_reference("smollm2", tmp_path / "base")
    model = lora_cut_student(["q_proj"], path=base, layers=[0, 2], lora_rank=2, dtype="fp32")
    assert sorted(adapters_of(model)) == ["layers.0.attn.q_proj", "layers.1.attn.q_proj"]


def tiny(**changes):
    config = {"model_type": "gpt2", "vocab_size": 17, "n_positions": 32, "n_embd": 16}
    return from_scratch({**config, "n_head": 2, "n_layer": 2, **changes})


def test_parts_of_one_tensor_are_one_adapter():
    """GPT-2 keeps queries, keys and values together: three adapters become one of their ranks."""
    model = add_lora_(tiny(), ["q_proj", "k_proj", "v_proj"], lora_rank=2, lora_alpha=6)
    adapter = peft_adapter(model)
    assert adapter.config["target_modules"] == ["attn.c_attn"]
    assert (adapter.config["r"], adapter.config["lora_alpha"]) == (6, 18)
    key = "base_model.model.transformer.h.1.attn.c_attn.lora_B.weight"
    assert adapter.tensors[key].shape == (48, 6)


def test_what_peft_cannot_hold_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="has no adapters to write"):
        peft_adapter(tiny())
    model = add_lora_(tiny(), ["output_proj"], lora_rank=2)
    model.layers[1].attn.output_proj = LoRALinear(16, 16, rank=4, alpha=8, use_bias=True)
    with pytest.raises(ValueError, match=r"attn\.c_proj must have one rank"):
        peft_adapter(model)
    halved = replace(
        FAMILIES["gpt2"], to_hf=lambda state, config: {k: v // 2 for k, v in state.items()}
    )
    monkeypatch.setitem(FAMILIES, "gpt2", halved)
    with pytest.raises(ValueError, match="must move the rows"):
        peft_adapter(add_lora_(tiny(), ["output_proj"], lora_rank=2))
