"""docs/new_family.md: its example is built, equals transformers, and distils from a config."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from loading import load_module
from omegaconf import OmegaConf
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, OlmoConfig, OlmoForCausalLM

from sad_components.models import cut_student, from_pretrained, save_student
from sad_components.models.families import FAMILIES, family_of_model, register_family
from sad_components.models.lora import add_lora_

ROOT = Path(__file__).parents[2]
EXAMPLE = "docs/examples/olmo_family.py"
TOKENS = torch.arange(60).reshape(3, 20)


@pytest.fixture
def importable(monkeypatch):
    """The example can be imported; it and its family are forgotten afterwards."""
    known = dict(FAMILIES)
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))
    yield
    FAMILIES.clear()
    FAMILIES.update(known)
    sys.modules.pop("olmo_family", None)


@pytest.fixture
def example(importable):
    return load_module(EXAMPLE)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def theirs(request):
    torch.manual_seed(0)
    config = OlmoConfig(
        vocab_size=61,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=request.param,
        initializer_range=0.2,
    )
    return OlmoForCausalLM(config).eval()


@torch.no_grad()
def test_logits_and_saved_folder_equal_transformers(example, theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    model = from_pretrained(tmp_path / "theirs")
    expected = theirs(TOKENS).logits
    assert expected.std() > 0.3
    assert_close(model(TOKENS), expected, atol=1e-4, rtol=0)
    assert family_of_model(model).model_type == "olmo"
    student = cut_student(tmp_path / "theirs", num_layers=2)
    saved = AutoModelForCausalLM.from_pretrained(save_student(student, tmp_path / "student"))
    assert isinstance(saved, OlmoForCausalLM)
    assert_close(saved.eval()(TOKENS).logits, student(TOKENS), atol=1e-4, rtol=0)
    assert_close(add_lora_(model, ["q_proj"])(TOKENS), expected, atol=1e-4, rtol=0)


def test_conversion_there_and_back_is_bit_identical(example, theirs):
    config = theirs.config.to_dict()
    tune = example.to_tune(theirs.state_dict(), config)
    back = example.to_hf(tune, config)
    hf = theirs.state_dict()
    if theirs.config.tie_word_embeddings:
        del hf["lm_head.weight"]
    assert back.keys() == hf.keys()
    assert all(torch.equal(back[name], hf[name]) for name in hf)


@pytest.mark.parametrize("change", [{"clip_qkv": 8.0}, {"rope_scaling": {"type": "linear"}}])
def test_what_the_decoder_cannot_express_is_refused(example, change):
    config = example.hf_config(example.olmo(61, 1, 2, 2, 16, 32))
    example.from_hf_config(config)
    with pytest.raises(ValueError, match=r"clip_qkv|linear"):
        example.from_hf_config({**config, **change})


def test_a_config_distils_with_it(importable, tmp_path, monkeypatch):
    """Nothing but the config names the module."""
    monkeypatch.chdir(tmp_path)
    sizes = {"vocab_size": 512, "hidden_size": 16, "intermediate_size": 32}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 1024}
    hf = {"model_type": "olmo", **sizes}
    cfg = OmegaConf.load(ROOT / "configs" / "tiny" / "structured_kd.yaml")
    for part, seed in (("teacher", 1), ("student", 2)):
        cfg[part] = {"_component_": "olmo_family.from_scratch", "seed": seed, "config": hf}
    cfg.merge_with({"dataset": {"limit": 4}, "heldout": None, "max_steps": 1})
    recipe = load_module("recipes/structured_kd.py").StructuredKDRecipe(cfg)
    recipe.setup(cfg)
    recipe.train()
    recipe.cleanup()
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "tiny" / "student")
    assert isinstance(student, OlmoForCausalLM)


def test_a_model_type_is_given_once(example):
    register_family(FAMILIES["olmo"])  # the same again changes nothing
    with pytest.raises(ValueError, match="'olmo' is known already"):
        load_module(EXAMPLE)


def test_page_quotes_the_example():
    page = (ROOT / "docs" / "new_family.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^    .*\n)+", page, re.M)
    source = (ROOT / EXAMPLE).read_text(encoding="utf-8")
    assert len(blocks) == 2
    for block in blocks:
        dedented = "".join(line[4:] for line in block.splitlines(keepends=True))
        assert dedented in source or block in source
    for model_type in FAMILIES:
        assert f"`{model_type}`" in page
