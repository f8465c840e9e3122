"""Between a Hugging Face ``Qwen3Config`` (as a plain dict) and a torchtune decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torchtune.models.qwen2._positional_embeddings import Qwen2RotaryPositionalEmbeddings
from torchtune.modules import TransformerDecoder

from sad_components.models.blocks import (
    NormFirstAttention,
    is_llama_like,
    llama_like_settings,
)
from sad_components.models.hf_settings import LLAMA_SIZES, check_fixed, check_sizes, rope_of
from sad_components.models.qwen2 import check_qwen_window
from sad_components.models.qwen3._component_builders import qwen3

_FIXED = {"hidden_act": "silu", "attention_bias": False}


def qwen3_from_hf_config(config: Mapping[str, Any]) -> TransformerDecoder:
    """The decoder that a ``Qwen3Config`` describes, with random weights N(0, 0.02).

    Args:
        config: content of a ``config.json`` with ``model_type: qwen3``.

    Raises:
        ValueError: a missing setting, or one that this decoder cannot express (biases, scaled
            rotary positions, sliding windows, ..).
    """
    check_sizes(config, LLAMA_SIZES, "qwen3")
    check_fixed(config, _FIXED, "qwen3")
    check_qwen_window(config)
    return qwen3(
        vocab_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        embed_dim=config["hidden_size"],
        intermediate_dim=config["intermediate_size"],
        head_dim=config.get("head_dim") or 128,
        max_seq_len=config.get("max_position_embeddings", 32_768),
        rope_base=rope_of(config, scalable=False).base,
        norm_eps=config.get("rms_norm_eps", 1e-6),
        attn_dropout=config.get("attention_dropout") or 0.0,
        tie_word_embeddings=config.get("tie_word_embeddings", False),
    )


def qwen3_hf_config(model: TransformerDecoder) -> dict[str, Any]:
    """The ``Qwen3Config`` that describes ``model``, read from its modules.

    Args:
        model: a decoder for which :func:`is_qwen3` holds; it may be sharded or checkpointed.
    """
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": model.layers[0].attn.head_dim,
        **llama_like_settings(model),
        **_FIXED,
    }


def is_qwen3(model: nn.Module) -> bool:
    """Whether ``model`` is a llama with normed queries and keys, and Qwen's rotation."""
    if not is_llama_like(model):
        return False
    attention = model.layers[0].attn
    return (
        isinstance(attention, NormFirstAttention)
        and isinstance(attention.pos_embeddings, Qwen2RotaryPositionalEmbeddings)
        and attention.q_norm is not None
        and not any(name.endswith("bias") for name, _ in model.named_parameters())
    )
