"""Between a Hugging Face ``GPT2Config`` (as a plain dict) and a torchtune decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torchtune.modules import TiedLinear, TransformerDecoder

from sad_components.models.gpt2._component_builders import gpt2
from sad_components.models.hf_settings import check_fixed, check_sizes
from sad_components.models.learned_positions import LearnedPositionsDecoder

_SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
#: Settings of a GPT2Config that this decoder has one value for, where the config names any.
_FIXED = {
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def gpt2_from_hf_config(config: Mapping[str, Any]) -> TransformerDecoder:
    """The decoder that a ``GPT2Config`` describes, with random weights.

    Args:
        config: content of a ``config.json`` with ``model_type: gpt2``. Where it names no dropout,
            transformers' default of 0.1 holds.

    Raises:
        ValueError: a missing setting, or one that this decoder cannot express.
    """
    check_sizes(config, _SIZES, "gpt2")
    check_fixed(config, _FIXED, "gpt2")
    dropout = config.get("resid_pdrop", 0.1)
    if config.get("embd_pdrop", 0.1) != dropout:
        raise ValueError(
            f"embd_pdrop and resid_pdrop must be equal; got {config.get('embd_pdrop', 0.1)} and "
            f"{dropout}: set both in config.json"
        )
    return gpt2(
        vocab_size=config["vocab_size"],
        num_layers=config["n_layer"],
        num_heads=config["n_head"],
        embed_dim=config["n_embd"],
        intermediate_dim=config.get("n_inner"),
        max_seq_len=config["n_positions"],
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        dropout=dropout,
        attn_dropout=config.get("attn_pdrop", 0.1),
        tie_word_embeddings=config.get("tie_word_embeddings", True),
    )


def gpt2_hf_config(model: TransformerDecoder) -> dict[str, Any]:
    """The ``GPT2Config`` that describes ``model``, read from its modules.

    Args:
        model: a decoder for which :func:`is_gpt2` holds; it may be sharded or checkpointed.
    """
    layer = model.layers[0]
    vocab_size, embed_dim = model.tok_embeddings.weight.shape
    intermediate_dim = layer.mlp.w1.weight.shape[0]
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": vocab_size,
        "n_positions": model.max_seq_len,
        "n_embd": embed_dim,
        "n_layer": len(model.layers),
        "n_head": layer.attn.num_heads,
        "n_inner": None if intermediate_dim == 4 * embed_dim else intermediate_dim,
        "layer_norm_epsilon": model.norm.eps,
        "resid_pdrop": layer.sa_scale.p,
        "embd_pdrop": model.embed_dropout.p,
        "attn_pdrop": layer.attn.attn_dropout,
        "tie_word_embeddings": isinstance(model.output, TiedLinear),
        **_FIXED,
    }


def is_gpt2(model: nn.Module) -> bool:
    """Whether ``model`` has the structure of this family: learned positions, GELU, LayerNorm."""
    if not isinstance(model, LearnedPositionsDecoder) or not len(model.layers):
        return False
    activation = model.layers[0].mlp.activation
    return (
        model.positions.offset == 0
        and model.project_in is None
        and isinstance(model.norm, nn.LayerNorm)
        and isinstance(activation, nn.GELU)
        and activation.approximate == "tanh"
    )
