"""Students cut from a teacher, and random ones."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from omegaconf import OmegaConf
from torchtune import config, training
from transformers import LlamaForCausalLM

from sad_components.models import (
    cut_student,
    even_layers,
    from_pretrained,
    from_scratch,
    save_student,
)
from sad_components.models.llama import llama_hf_config


@pytest.mark.parametrize(
    ("depth", "kept", "expected"),
    [
        (30, 6, [0, 6, 12, 17, 23, 29]),
        (30, 2, [0, 29]),
        (30, 1, [0]),
        (4, 3, [0, 2, 3]),
        (5, 3, [0, 2, 4]),
        (4, 4, [0, 1, 2, 3]),
        (1, 1, [0]),
    ],
)
def test_even_layers_by_hand(depth, kept, expected):
    assert even_layers(depth, kept) == expected


def test_even_layers_are_even():
    for depth in range(1, 41):
        for kept in range(2, depth + 1):
            layers = even_layers(depth, kept)
            gaps = [b - a for a, b in pairwise(layers)]
            assert (len(layers), layers[0], layers[-1]) == (kept, 0, depth - 1)
            assert min(gaps) >= 1
            assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("how", [{"num_layers": 3}, {"layers": [0, 2, 3]}])
def test_student_is_the_teacher_without_the_other_layers(tiny_folder, tiny_llama, tokens, how):
    student = cut_student(tiny_folder, dtype="fp32", **how)
    tiny_llama.model.layers = torch.nn.ModuleList(tiny_llama.model.layers[i] for i in (0, 2, 3))
    tiny_llama.config.num_hidden_layers = 3
    with torch.no_grad():
        expected = tiny_llama(tokens, use_cache=False).logits
        torch.testing.assert_close(student(tokens), expected, atol=1e-4, rtol=0)
    assert len(student.layers) == 3
    assert all(p.requires_grad for p in student.parameters())


def test_all_layers_give_the_teacher(tiny_folder, tokens):
    teacher, student = from_pretrained(tiny_folder), cut_student(tiny_folder, num_layers=4)
    assert torch.equal(student(tokens), teacher(tokens))


def test_student_shares_no_memory_with_the_file(tiny_folder):
    student = cut_student(tiny_folder, num_layers=2)
    with torch.no_grad():
        student.tok_embeddings.weight.zero_()
    assert from_pretrained(tiny_folder).tok_embeddings.weight.abs().sum() > 0


def test_saved_cut_loads_in_transformers(tiny_folder, tokens, tmp_path):
    student = cut_student(tiny_folder, layers=[1, 2])
    out = save_student(student, tmp_path / "student", tokenizer_dir=tiny_folder)
    loaded = LlamaForCausalLM.from_pretrained(out).eval()
    assert loaded.config.num_hidden_layers == 2
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, student(tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"num_layers": 5}, "the teacher has 4 layers.*not 5"),
        ({"num_layers": 0}, "not 0"),
        ({"layers": [0, 4]}, r"from 0 to 3.*\[0, 4\]"),
        ({"layers": [-1, 2]}, "ascending"),
        ({"layers": [1, 1]}, "each once"),
        ({"layers": [2, 1]}, "ascending"),
        ({"layers": []}, "ascending"),
        ({}, "exactly one of"),
        ({"num_layers": 1, "layers": [0]}, "exactly one of"),
    ],
)
def test_impossible_cuts(tiny_folder, how, message):
    with pytest.raises(ValueError, match=message):
        cut_student(tiny_folder, **how)


def test_components_instantiate_from_yaml(tiny_folder):
    node = OmegaConf.create(
        {
            "_component_": "sad_components.models.cut_student",
            "path": str(tiny_folder),
            "layers": [0, 3],
        }
    )
    with training.set_default_dtype(torch.bfloat16):
        student = config.instantiate(node)
    assert len(student.layers) == 2
    assert student.norm.scale.dtype == torch.bfloat16
    assert student.layers[0].attn.pos_embeddings.cache.dtype == torch.float32


def test_random_model_follows_config_and_seed(tiny_config, tiny_folder, tokens):
    first = from_scratch(tiny_config.to_dict(), seed=1)
    same = from_scratch(tiny_folder, seed=1)
    other = from_scratch(tiny_folder, seed=2, dtype="bf16")
    assert torch.equal(first(tokens), same(tokens))
    assert not torch.equal(first.norm.scale + 1, other.norm.scale)
    assert other.tok_embeddings.weight.dtype == torch.bfloat16
    assert not torch.equal(other.tok_embeddings.weight.float(), first.tok_embeddings.weight)
    assert llama_hf_config(first)["num_key_value_heads"] == 2


def test_random_model_can_be_saved(tiny_config, tokens, tmp_path):
    model = from_scratch(tiny_config.to_dict(), seed=1)
    loaded = LlamaForCausalLM.from_pretrained(save_student(model, tmp_path / "out")).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, model(tokens), atol=1e-4, rtol=0)
    assert loaded.config.eos_token_id is None


def test_dtype_must_be_known(tiny_folder):
    with pytest.raises(ValueError, match="bf16"):
        from_pretrained(tiny_folder, dtype="float8")


def test_unknown_structure_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="Linear has the structure of none"):
        save_student(torch.nn.Linear(2, 2), tmp_path / "out")
