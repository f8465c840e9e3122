"""GPT-2's and OPT's positions: what ends them, where they come from, that they can be exported."""

from __future__ import annotations

import json

import pytest
import torch
from hf_families import CONFIGS, CONTEXT, write_reference
from torch.nn.attention.flex_attention import create_block_mask

from sad_components.models import from_pretrained, from_scratch, save_student
from sad_components.models.families import FAMILIES, build_decoder, family_of_model
from sad_components.models.gpt2 import gpt2, gpt2_hf_to_tune, gpt2_tune_to_hf
from sad_components.models.opt import opt, opt_hf_to_tune

TOKENS = torch.arange(12)[None]


@pytest.fixture(params=["gpt2", "opt", "opt-350m"])
def model(request):
    return from_scratch(CONFIGS[request.param], seed=0).eval()


def test_positions_beyond_the_last_one_learned(model):
    given = torch.arange(CONTEXT - 11, CONTEXT + 1)[None]
    with pytest.raises(ValueError, match=r"learned up to 63; got position 64: shorten rows to 64"):
        model(TOKENS, input_pos=given)
    model(TOKENS, input_pos=given - 1)
    with pytest.raises(ValueError, match="max_seq_len"):
        model(torch.zeros(1, CONTEXT + 1, dtype=torch.long))
    model.setup_caches(batch_size=1, dtype=torch.float32)
    mask = torch.ones(1, 1, CONTEXT, dtype=torch.bool)
    with pytest.raises(ValueError, match="input positions must be provided"):
        model(TOKENS[:, :1], mask=mask)


def test_a_block_mask_needs_positions(model):
    mask = create_block_mask(lambda b, h, q, kv: q >= kv, 1, None, 12, 12, device="cpu")
    with pytest.raises(ValueError, match="BlockMask: pass input_pos"):
        model(TOKENS, mask=mask)


def test_where_positions_start_matters(model):
    moved = model(TOKENS, input_pos=torch.arange(3, 15))  # once for all rows
    assert not torch.allclose(moved, model(TOKENS), atol=1e-3)


def test_export_of_any_length(model):
    length = torch.export.Dim("length", min=2, max=CONTEXT)
    program = torch.export.export(model, (TOKENS,), dynamic_shapes=({1: length},), strict=False)
    longer = torch.arange(30)[None]
    torch.testing.assert_close(program.module()(longer), model(longer))


def test_intermediate_hidden_states(model):
    model.output_hidden_states = [0, 2]
    first, third, logits = model(TOKENS)
    assert first.shape == third.shape == (1, 12, 48)
    assert logits.shape == (1, 12, 97)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gpt2", {"activation_function": "gelu"}, "activation_function='gelu_new'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"embd_pdrop": 0.3}, "embd_pdrop and resid_pdrop must be equal; got 0.3 and 0.1"),
        ("gpt2", {"n_head": 7}, "multiple of num_heads"),
        ("gpt2", {"n_positions": 0}, "n_positions"),
        ("opt", {"activation_function": "gelu"}, "activation_function='relu'"),
        ("opt", {"enable_bias": False}, "enable_bias"),
        ("opt", {"num_attention_heads": 5}, "multiple of num_heads"),
        ("opt", {"ffn_dim": None}, "ffn_dim"),
    ],
)
def test_config_that_cannot_be_expressed_is_refused(name, change, message):
    with pytest.raises(ValueError, match=message):
        build_decoder({**CONFIGS[name], **change})


def test_dropout_is_the_configs_unless_given(tmp_path):
    folder = write_reference("gpt2", tmp_path / "gpt2")
    torch.manual_seed(0)
    model = from_pretrained(folder).train()
    assert not torch.equal(model(TOKENS), model(TOKENS))
    calm = from_pretrained(folder, dropout=0.0).train()
    assert torch.equal(calm(TOKENS), calm(TOKENS))
    config = json.loads((save_student(calm, tmp_path / "calm") / "config.json").read_text())
    assert [config[key] for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop")] == [0, 0, 0]
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\]"):
        from_pretrained(folder, dropout=1.5)


def test_published_files_have_other_prefixes_and_buffers():
    """The files of gpt2 have no prefix, and causal masks among the weights; OPT's no 'model.'."""
    for name, prefix, convert in (
        ("gpt2", "transformer.", gpt2_hf_to_tune),
        ("opt", "model.", opt_hf_to_tune),
    ):
        config = CONFIGS[name]
        model = build_decoder(config)
        hf = FAMILIES[name].to_hf(model.state_dict(), config)
        published = {key.removeprefix(prefix): tensor for key, tensor in hf.items()}
        if name == "gpt2":
            published["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
            published["h.0.attn.masked_bias"] = torch.tensor(-1e4)
        published["lm_head.weight"] = model.tok_embeddings.weight
        assert convert(published, config).keys() == model.state_dict().keys()


def test_incomplete_attention_is_named():
    state = build_decoder(CONFIGS["gpt2"]).state_dict()
    del state["layers.1.attn.v_proj.bias"]
    with pytest.raises(ValueError, match=r"h\.1\.attn\.v_proj\.bias.* is missing"):
        gpt2_tune_to_hf(state, CONFIGS["gpt2"])
    with pytest.raises(ValueError, match="not part of the gpt2 architecture"):
        gpt2_hf_to_tune({"h.0.crossattention.c_proj.weight": torch.zeros(2, 2)}, {})


def test_structures_are_told_apart():
    sizes = {"vocab_size": 9, "num_layers": 1, "num_heads": 2, "embed_dim": 8}
    assert family_of_model(gpt2(**sizes)).model_type == "gpt2"
    assert family_of_model(opt(intermediate_dim=8, **sizes)).model_type == "opt"
