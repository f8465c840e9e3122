"""The smollm2 family against transformers: logits, weights both ways, configs, sizes."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from torchtune.models import convert_weights
from torchtune.models.gemma import gemma
from transformers import LlamaConfig, LlamaForCausalLM

from sad_components.models import init_weights
from sad_components.models.smollm2 import (
    is_smollm2,
    smollm2,
    smollm2_1_7b,
    smollm2_135m,
    smollm2_360m,
    smollm2_from_hf_config,
    smollm2_hf_config,
    smollm2_hf_to_tune,
    smollm2_tune_to_hf,
)

TINY = {
    "vocab_size": 97,
    "num_layers": 2,
    "num_heads": 6,
    "num_kv_heads": 2,
    "embed_dim": 48,
    "intermediate_dim": 80,
    "max_seq_len": 64,
}


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_transformers(tiny_config, tokens, kv_heads, tied):
    tiny_config.num_key_value_heads = kv_heads
    tiny_config.tie_word_embeddings = tied
    torch.manual_seed(3)
    reference = LlamaForCausalLM(tiny_config).eval()
    model = smollm2_from_hf_config(tiny_config.to_dict())
    weights = smollm2_hf_to_tune(reference.state_dict(), 6, kv_heads, tie_word_embeddings=tied)
    model.load_state_dict(weights)
    with torch.no_grad():
        expected = reference(tokens).logits
        assert expected.std() > 0.3
        assert_close(model(tokens), expected, atol=1e-4, rtol=0)


def test_padding_free_positions_equal_transformers(tiny_llama, tokens):
    """Packed rows: positions that restart are honoured as transformers honours them."""
    positions = torch.cat([torch.arange(11), torch.arange(18)]).expand(3, -1)
    mask = torch.block_diag(torch.ones(11, 11), torch.ones(18, 18)).tril().bool().expand(3, -1, -1)
    model = smollm2_from_hf_config(tiny_llama.config.to_dict())
    model.load_state_dict(smollm2_hf_to_tune(tiny_llama.state_dict(), 6, 2))
    with torch.no_grad():
        expected = tiny_llama(tokens, position_ids=positions, attention_mask=mask[:, None]).logits
        assert_close(model(tokens, mask=mask, input_pos=positions), expected, atol=1e-4, rtol=0)


def test_round_trips_are_bit_identical(tiny_llama):
    hf = {k: v for k, v in tiny_llama.state_dict().items() if k != "lm_head.weight"}
    tune = smollm2_hf_to_tune(tiny_llama.state_dict(), 6, 2)
    back = smollm2_tune_to_hf(tune, 6, 2)
    assert back.keys() == hf.keys()
    assert all(torch.equal(back[name], hf[name]) for name in hf)
    again = smollm2_hf_to_tune(back, 6, 2)
    assert again.keys() == tune.keys()
    assert all(torch.equal(again[name], tune[name]) for name in tune)


def test_conversion_equals_torchtunes_own(tiny_llama):
    hf = {k: v for k, v in tiny_llama.state_dict().items() if k != "lm_head.weight"}
    expected = convert_weights.hf_to_tune(hf, num_heads=6, num_kv_heads=2, dim=48)
    ours = smollm2_hf_to_tune(hf, 6, 2)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_unknown_tensor_is_named():
    with pytest.raises(ValueError, match=r"q_proj\.bias"):
        smollm2_hf_to_tune({"model.layers.0.self_attn.q_proj.bias": torch.zeros(4)}, 2, 1)
    with pytest.raises(ValueError, match="lora_a"):
        smollm2_tune_to_hf({"layers.0.attn.q_proj.lora_a.weight": torch.zeros(4, 4)}, 2, 1)


@pytest.mark.parametrize(
    ("builder", "layers", "parameters"),
    [
        (smollm2_135m, 30, 134_515_008),
        (smollm2_360m, 32, 361_821_120),
        (smollm2_1_7b, 24, 1_711_376_384),
    ],
)
def test_published_sizes(builder, layers, parameters):
    with torch.device("meta"):
        model = builder()
        shallow = builder(num_layers=3)
        hf_config = smollm2_hf_config(model)
        reference = LlamaForCausalLM(LlamaConfig(**hf_config))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in reference.parameters()) == parameters
    assert (len(model.layers), len(shallow.layers)) == (layers, 3)
    assert hf_config["rope_theta"] == (130_000 if builder is smollm2_1_7b else 100_000)
    assert hf_config["max_position_embeddings"] == 8192


def test_config_is_read_back_from_the_modules():
    model = smollm2(**TINY, rope_base=12_345.0, norm_eps=1e-3, tie_word_embeddings=False)
    config = smollm2_hf_config(model)
    twin = smollm2_from_hf_config(config)
    assert smollm2_hf_config(twin) == config
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
        ({"head_dim": 64}, "head_dim"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "llama3"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"intermediate_size": None}, "intermediate_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_attention_heads": 7}, "multiple of num_heads"),
    ],
)
def test_config_that_cannot_be_expressed_is_refused(change, message):
    config = smollm2_hf_config(smollm2(**TINY))
    config.pop("head_dim")
    with pytest.raises(ValueError, match=message):
        smollm2_from_hf_config({**config, **change})


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


def test_structure_is_recognised():
    assert is_smollm2(smollm2(**TINY))
    assert not is_smollm2(torch.nn.Linear(3, 3))


def test_gemma_is_not_taken_for_a_llama():
    """Same names and shapes, but GELU, another RMSNorm and scaled embeddings."""
    sizes = {"num_heads": 2, "head_dim": 8, "num_kv_heads": 1, "embed_dim": 16}
    model = gemma(64, 1, **sizes, intermediate_dim=32, max_seq_len=32)
    assert not is_smollm2(model)
