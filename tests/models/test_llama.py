"""The llama family (SmolLM2 is one): weights and configs both ways, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from torchtune.models import convert_weights
from torchtune.models.gemma import gemma
from transformers import LlamaForCausalLM

from sad_components.models import init_weights
from sad_components.models.llama import (
    is_llama,
    llama_from_hf_config,
    llama_hf_config,
    llama_hf_to_tune,
    llama_tune_to_hf,
)
from sad_components.models.smollm2 import smollm2

TINY = {
    "vocab_size": 97,
    "num_layers": 2,
    "num_heads": 6,
    "num_kv_heads": 2,
    "embed_dim": 48,
    "intermediate_dim": 80,
    "max_seq_len": 64,
}
TIED = {"num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True}


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_transformers(tiny_config, tokens, kv_heads, tied):
    tiny_config.num_key_value_heads = kv_heads
    tiny_config.tie_word_embeddings = tied
    torch.manual_seed(3)
    reference = LlamaForCausalLM(tiny_config).eval()
    model = llama_from_hf_config(tiny_config.to_dict())
    weights = llama_hf_to_tune(reference.state_dict(), tiny_config.to_dict())
    model.load_state_dict(weights)
    with torch.no_grad():
        expected = reference(tokens).logits
        assert expected.std() > 0.3
        assert_close(model(tokens), expected, atol=1e-4, rtol=0)


def test_padding_free_positions_equal_transformers(tiny_llama, tokens):
    """Packed rows: positions that restart are honoured as transformers honours them."""
    positions = torch.cat([torch.arange(11), torch.arange(18)]).expand(3, -1)
    mask = torch.block_diag(torch.ones(11, 11), torch.ones(18, 18)).tril().bool().expand(3, -1, -1)
    model = llama_from_hf_config(tiny_llama.config.to_dict())
    model.load_state_dict(llama_hf_to_tune(tiny_llama.state_dict(), TIED))
    with torch.no_grad():
        expected = tiny_llama(tokens, position_ids=positions, attention_mask=mask[:, None]).logits
        assert_close(model(tokens, mask=mask, input_pos=positions), expected, atol=1e-4, rtol=0)


def test_round_trips_are_bit_identical(tiny_llama):
    hf = {k: v for k, v in tiny_llama.state_dict().items() if k != "lm_head.weight"}
    tune = llama_hf_to_tune(tiny_llama.state_dict(), TIED)
    back = llama_tune_to_hf(tune, TIED)
    assert back.keys() == hf.keys()
    assert all(torch.equal(back[name], hf[name]) for name in hf)
    again = llama_hf_to_tune(back, TIED)
    assert again.keys() == tune.keys()
    assert all(torch.equal(again[name], tune[name]) for name in tune)


def test_conversion_equals_torchtunes_own(tiny_llama):
    hf = {k: v for k, v in tiny_llama.state_dict().items() if k != "lm_head.weight"}
    expected = convert_weights.hf_to_tune(hf, num_heads=6, num_kv_heads=2, dim=48)
    ours = llama_hf_to_tune(hf, TIED)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_unknown_tensor_is_named():
    with pytest.raises(ValueError, match=r"q_proj\.bias"):
        llama_hf_to_tune({"model.layers.0.self_attn.q_proj.bias": torch.zeros(4)}, TIED)
    with pytest.raises(ValueError, match="lora_a"):
        llama_tune_to_hf({"layers.0.attn.q_proj.lora_a.weight": torch.zeros(4, 4)}, TIED)


def test_config_is_read_back_from_the_modules():
    model = smollm2(**TINY, rope_base=12_345.0, norm_eps=1e-3, tie_word_embeddings=False)
    config = llama_hf_config(model)
    twin = llama_from_hf_config(config)
    assert llama_hf_config(twin) == config
    assert (config["rope_theta"], config["rms_norm_eps"]) == (12_345.0, 1e-3)
    assert config["tie_word_embeddings"] is False
    twin.load_state_dict(model.state_dict())
    tokens = torch.arange(20)[None]
    assert torch.equal(twin(tokens), model(tokens))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "needs numbers for"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"intermediate_size": None}, "intermediate_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_attention_heads": 7}, "multiple of num_heads"),
    ],
)
def test_config_that_cannot_be_expressed_is_refused(change, message):
    config = llama_hf_config(smollm2(**TINY))
    config.pop("head_dim")
    with pytest.raises(ValueError, match=message):
        llama_from_hf_config({**config, **change})


def test_initial_weights_are_small_and_follow_the_seed():
    model = smollm2(**TINY)
    assert 0.018 < model.tok_embeddings.weight.std() < 0.022
    assert torch.equal(model.norm.scale, torch.ones(48))
    first = {k: v.clone() for k, v in init_weights(model, seed=1).state_dict().items()}
    torch.rand(5)  # the global generator does not matter
    second = init_weights(smollm2(**TINY), seed=1).state_dict()
    other = init_weights(smollm2(**TINY), seed=2).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["layers.1.mlp.w1.weight"], other["layers.1.mlp.w1.weight"])


def test_initial_weights_by_width():
    state = init_weights(smollm2(**TINY), seed=1, std=None).state_dict()
    expected = {
        "tok_embeddings.weight": 48**-0.5,
        "layers.0.attn.q_proj.weight": 48**-0.5,
        "layers.0.attn.output_proj.weight": (48 * 4) ** -0.5,  # four writers in two layers
        "layers.1.mlp.w2.weight": (80 * 4) ** -0.5,
    }
    for name, std in expected.items():
        assert state[name].std().item() == pytest.approx(std, rel=0.06), name


def test_structure_is_recognised():
    assert is_llama(smollm2(**TINY))
    assert not is_llama(torch.nn.Linear(3, 3))


def test_gemma_is_not_taken_for_a_llama():
    """Same names and shapes, but GELU, another RMSNorm and scaled embeddings."""
    sizes = {"num_heads": 2, "head_dim": 8, "num_kv_heads": 1, "embed_dim": 16}
    model = gemma(64, 1, **sizes, intermediate_dim=32, max_seq_len=32)
    assert not is_llama(model)
