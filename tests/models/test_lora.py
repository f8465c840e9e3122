"""Adapters on every family: nothing changes until they are trained; names are torchtune's."""

from __future__ import annotations

import pytest
import torch
from hf_families import CONFIGS, VOCAB, write_reference
from omegaconf import OmegaConf
from torch.testing import assert_close
from torchao.dtypes.nf4tensor import NF4Tensor
from torchtune import config as tune_config
from torchtune.models.qwen2 import lora_qwen2, qwen2
from torchtune.modules.peft import (
    get_adapter_params,
    get_merged_lora_ckpt,
    set_trainable_params,
)

from sad_components.models import from_pretrained, from_scratch, save_student
from sad_components.models.families import family_of_model
from sad_components.models.gpt2 import gpt2, lora_gpt2, qlora_gpt2_124m
from sad_components.models.lora import add_lora_

ALL = ["q_proj", "k_proj", "v_proj", "output_proj"]
TOKENS = torch.arange(24).reshape(2, 12)


@pytest.fixture
def tiny_gpt2():
    return from_scratch(CONFIGS["gpt2"], seed=0, dropout=0.0)


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", ["gpt2", "opt-350m", "llama3.2", "qwen2.5-0.5b", "qwen3-8b"])
def test_adapters_start_as_nothing_and_merge_into_the_weights(name, use_dora, tmp_path):
    model = from_pretrained(write_reference(name, tmp_path / name), dropout=0.0)
    before = model(TOKENS).detach()
    family = family_of_model(model)
    add_lora_(model, ALL, apply_lora_to_mlp=True, lora_rank=2, lora_alpha=4, use_dora=use_dora)
    assert_close(model(TOKENS), before, atol=1e-4, rtol=0)
    assert family_of_model(model) is family
    set_trainable_params(model, get_adapter_params(model))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):
        torch.nn.functional.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = model(TOKENS).detach()
    assert (trained - before).abs().max() > 1e-2
    merged = get_merged_lora_ckpt({k: v.clone() for k, v in model.state_dict().items()}, 2, 4)
    saved = save_student(model, tmp_path / "merged", state_dict=merged)
    assert_close(from_pretrained(saved)(TOKENS), trained, atol=1e-3, rtol=0)


def test_same_parameters_as_torchtunes_own_builder():
    sizes = {"vocab_size": VOCAB, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    sizes |= {"embed_dim": 32, "intermediate_dim": 64, "max_seq_len": 32}
    theirs = lora_qwen2(ALL, apply_lora_to_mlp=True, lora_rank=4, lora_alpha=8, **sizes)
    ours = add_lora_(qwen2(**sizes), ALL, apply_lora_to_mlp=True, lora_rank=4, lora_alpha=8)
    shapes = [{k: v.shape for k, v in m.named_parameters()} for m in (ours, theirs)]
    assert shapes[0] == shapes[1]
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours(TOKENS), theirs(TOKENS))
    assert get_adapter_params(ours).keys() == get_adapter_params(theirs).keys()


def relative_error(tensor, expected):
    return ((tensor - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("embed_dim", [128, 160])  # the second as in GPT-2 XL: not 256 scales
def test_qlora_holds_nf4_and_gives_back_plain_weights(embed_dim):
    sizes = {"vocab_size": VOCAB, "num_layers": 2, "num_heads": 4, "embed_dim": embed_dim}
    torch.manual_seed(0)
    model = lora_gpt2(["q_proj"], apply_lora_to_mlp=True, quantize_base=True, **sizes)
    torch.manual_seed(0)
    plain = gpt2(**sizes)
    assert isinstance(model.layers[0].attn.q_proj.weight, NF4Tensor)
    assert not isinstance(model.layers[0].attn.k_proj.weight, NF4Tensor)
    assert relative_error(model(TOKENS).detach(), plain(TOKENS).detach()) < 0.2
    restored, original = model.state_dict(), plain.state_dict()
    for name in ("layers.1.mlp.w2.weight", "layers.0.attn.q_proj.weight"):
        assert not isinstance(restored[name], NF4Tensor)
        assert 0.01 < relative_error(restored[name], original[name]) < 0.12
    assert torch.equal(restored["layers.0.attn.k_proj.weight"], plain.layers[0].attn.k_proj.weight)
    model.load_state_dict(restored)
    model(TOKENS).sum().backward()
    assert model.layers[0].attn.q_proj.lora_b.weight.grad.abs().sum() > 0
    assert model.layers[0].attn.q_proj.weight.grad is None


def test_builder_from_yaml():
    node = OmegaConf.create(
        {
            "_component_": "sad_components.models.gpt2.lora_gpt2",
            "lora_attn_modules": ["q_proj", "v_proj"],
            "apply_lora_to_output": True,
            "tie_word_embeddings": False,
            **{"vocab_size": VOCAB, "num_layers": 1, "num_heads": 2, "embed_dim": 16},
        }
    )
    model = tune_config.instantiate(node)
    assert sorted({k.rsplit(".", 2)[0] for k in get_adapter_params(model)}) == [
        "layers.0.attn.q_proj",
        "layers.0.attn.v_proj",
        "output",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lora_attn_modules": []}, "must name some of q_proj"),
        ({"lora_attn_modules": ["qkv"]}, "qkv"),
        ({"lora_attn_modules": ["q_proj"], "apply_lora_to_output": True}, "its embedding"),
    ],
)
def test_what_cannot_be_adapted(tiny_gpt2, arguments, message):
    with pytest.raises(ValueError, match=message):
        add_lora_(tiny_gpt2, **arguments)


def test_adapters_on_adapters_are_refused(tiny_gpt2):
    add_lora_(tiny_gpt2, ["q_proj"])
    with pytest.raises(ValueError, match="adapters already"):
        add_lora_(tiny_gpt2, ["q_proj"])


def test_weights_nf4_cannot_hold():
    model = gpt2(vocab_size=VOCAB, num_layers=1, num_heads=2, embed_dim=20)
    with pytest.raises(ValueError, match=r"multiple of 64.*\(20, 20\)"):
        add_lora_(model, ["q_proj"], quantize_base=True)


def test_unmerged_adapters_are_not_saved(tiny_gpt2, tmp_path):
    add_lora_(tiny_gpt2, ["q_proj"])
    with pytest.raises(ValueError, match=r"lora_a.*merge those first"):
        save_student(tiny_gpt2, tmp_path / "out")


def test_unknown_argument_of_a_size():
    with pytest.raises(TypeError, match="n_layers"):
        qlora_gpt2_124m(["q_proj"], n_layers=2)
