"""Between a Hugging Face ``OPTConfig`` (as a plain dict) and a torchtune decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torchtune.modules import TiedLinear, TransformerDecoder

from sad_components.models.hf_settings import check_fixed, check_sizes
from sad_components.models.learned_positions import LearnedPositionsDecoder
from sad_components.models.opt._component_builders import POSITION_OFFSET, opt

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "ffn_dim",
    "max_position_embeddings",
)
#: Settings of an OPTConfig that this decoder has one value for, where the config names any.
_FIXED = {
    "activation_function": "relu",
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "layerdrop": 0.0,
    "_remove_final_layer_norm": False,
}


def opt_from_hf_config(config: Mapping[str, Any]) -> TransformerDecoder:
    """The decoder that an ``OPTConfig`` describes, with random weights.

    Args:
        config: content of a ``config.json`` with ``model_type: opt``. Where it names no dropout,
            transformers' default of 0.1 (of attention: 0) holds.

    Raises:
        ValueError: a missing setting, or one that this decoder cannot express.
    """
    check_sizes(config, _SIZES, "opt")
    check_fixed(config, _FIXED, "opt")
    return opt(
        vocab_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        embed_dim=config["hidden_size"],
        intermediate_dim=config["ffn_dim"],
        max_seq_len=config["max_position_embeddings"],
        word_embed_dim=config.get("word_embed_proj_dim"),
        post_norm=not config.get("do_layer_norm_before", True),
        dropout=config.get("dropout", 0.1),
        attn_dropout=config.get("attention_dropout", 0.0),
        tie_word_embeddings=config.get("tie_word_embeddings", True),
    )


def opt_hf_config(model: TransformerDecoder) -> dict[str, Any]:
    """The ``OPTConfig`` that describes ``model``, read from its modules.

    Args:
        model: a decoder for which :func:`is_opt` holds; it may be sharded or checkpointed.
    """
    layer = model.layers[0]
    vocab_size, word_dim = model.tok_embeddings.weight.shape
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": vocab_size,
        "hidden_size": model.positions.weight.shape[1],
        "word_embed_proj_dim": word_dim,
        "num_hidden_layers": len(model.layers),
        "num_attention_heads": layer.attn.num_heads,
        "ffn_dim": layer.mlp.w1.weight.shape[0],
        "max_position_embeddings": model.max_seq_len,
        "do_layer_norm_before": "final" in dict(model.norm.named_children()),
        "dropout": layer.sa_scale.p,
        "attention_dropout": layer.attn.attn_dropout,
        "tie_word_embeddings": isinstance(model.output, TiedLinear),
        **_FIXED,
    }


def is_opt(model: nn.Module) -> bool:
    """Whether ``model`` has the structure of this family: positions offset by 2, ReLU."""
    if not isinstance(model, LearnedPositionsDecoder) or not len(model.layers):
        return False
    return (
        model.positions.offset == POSITION_OFFSET
        and isinstance(model.norm, nn.Sequential)
        and isinstance(model.layers[0].mlp.activation, nn.ReLU)
    )
