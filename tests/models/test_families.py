"""Families that share a structure, windows, and settings that only a config can tell."""

from __future__ import annotations

import json

import pytest
import torch
from hf_families import CONFIGS, CONTEXT, write_reference
from omegaconf import OmegaConf
from torchtune.models.mistral import mistral

from sad_components.models import from_pretrained, from_scratch, save_student
from sad_components.models.families import build_decoder, family_of_model, hf_config_of


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_model_remembers_its_family(name):
    model = build_decoder(CONFIGS[name])
    assert family_of_model(model).model_type == CONFIGS[name]["model_type"]


def test_without_an_origin_a_mistral_is_a_llama():
    sizes = {"vocab_size": 9, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
    model = mistral(**sizes, embed_dim=8, intermediate_dim=8, max_seq_len=8)
    assert family_of_model(model).model_type == "llama"


def test_what_the_modules_do_not_say_comes_from_the_origin():
    origin = {**CONFIGS["mistral-wide-window"], "initializer_range": 0.5, "transformers_version": 1}
    model = build_decoder(origin)
    config = hf_config_of(model)
    assert (config["sliding_window"], config["initializer_range"]) == (CONTEXT, 0.5)
    assert "transformers_version" not in config
    del model.layers[1]  # the modules win where they say something
    assert hf_config_of(model)["num_hidden_layers"] == 2


def test_a_model_that_became_another_forgets_its_origin():
    model = build_decoder({**CONFIGS["qwen2.5-7b"], "initializer_range": 0.5})
    other = build_decoder(CONFIGS["llama2"])
    other.hf_config = model.hf_config
    config = hf_config_of(other)
    assert config["model_type"] == "llama"
    assert "initializer_range" not in config


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mistral", {"sliding_window": CONTEXT - 1}),
        ("qwen2.5-7b", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 2}),
        ("qwen3-8b", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 2}),
    ],
)
def test_windows_within_the_context_are_refused(name, change):
    with pytest.raises(ValueError, match=r"sliding windows are not supported.*of 64.*config\.json"):
        build_decoder({**CONFIGS[name], **change})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("qwen2.5-7b", {"use_sliding_window": False, "sliding_window": 32}),
        ("qwen2.5-7b", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 3}),
        ("qwen3-8b", {"use_sliding_window": True, "sliding_window": CONTEXT}),
    ],
)
def test_windows_that_hide_nothing_are_taken(name, change):
    build_decoder({**CONFIGS[name], **change})


def test_a_mistral_that_names_no_window_has_transformers_default():
    config = {k: v for k, v in CONFIGS["mistral"].items() if k != "sliding_window"}
    build_decoder(config)
    with pytest.raises(
        ValueError, match="window of 4096 tokens is shorter than its context of 819"
    ):
        build_decoder({**config, "max_position_embeddings": 8192})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("qwen2.5-7b", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "plain positions.*yarn"),
        ("qwen2.5-7b", {"head_dim": 16}, "head_dim must be"),
        ("qwen3-8b", {"attention_bias": True}, "attention_bias"),
        ("llama3", {"mlp_bias": True}, "mlp_bias"),
    ],
)
def test_config_that_cannot_be_expressed_is_refused(name, change, message):
    with pytest.raises(ValueError, match=message):
        build_decoder({**CONFIGS[name], **change})


def test_rotary_tables_are_made_where_the_model_lands(tmp_path):
    """Scaled ones cannot be made on the meta device, on which models are assembled."""
    model = from_pretrained(write_reference("llama3", tmp_path / "llama3"), dtype="bf16")
    rope = model.layers[0].attn.pos_embeddings
    assert rope.cache.dtype == torch.float32
    fresh = build_decoder(CONFIGS["llama3"]).layers[0].attn.pos_embeddings
    assert torch.equal(rope.cache, fresh.cache)


def test_a_config_out_of_yaml_is_saved_as_json(tmp_path):
    node = OmegaConf.create({**CONFIGS["gpt2"], "task_specific_params": {"text": {"length": 50}}})
    saved = save_student(from_scratch(node), tmp_path / "out")
    config = json.loads((saved / "config.json").read_text())
    assert config["task_specific_params"] == {"text": {"length": 50}}
