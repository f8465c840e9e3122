"""Between a Hugging Face ``Qwen2Config`` (as a plain dict) and torchtune's qwen2 decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torchtune.models.qwen2 import qwen2
from torchtune.models.qwen2._positional_embeddings import Qwen2RotaryPositionalEmbeddings
from torchtune.modules import TransformerDecoder

from sad_components.models.blocks import is_llama_like, llama_like_settings
from sad_components.models.hf_settings import (
    LLAMA_SIZES,
    check_fixed,
    check_full_attention,
    check_head_dim,
    check_sizes,
    rope_of,
)
from sad_components.models.initialization import init_weights

_FIXED = {"hidden_act": "silu"}
#: What transformers takes where a config names none.
_CONTEXT, _WINDOW, _FULL_LAYERS = 32_768, 4096, 28


def qwen2_from_hf_config(config: Mapping[str, Any]) -> TransformerDecoder:
    """The decoder that a ``Qwen2Config`` describes, with random weights N(0, 0.02).

    Args:
        config: content of a ``config.json`` with ``model_type: qwen2``.

    Raises:
        ValueError: a missing setting, or one that this decoder cannot express (scaled rotary
            positions, sliding windows, ..).
    """
    check_sizes(config, LLAMA_SIZES, "qwen2")
    check_fixed(config, _FIXED, "qwen2")
    check_head_dim(config)
    check_qwen_window(config)
    return init_weights(
        qwen2(
            vocab_size=config["vocab_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            num_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            embed_dim=config["hidden_size"],
            intermediate_dim=config["intermediate_size"],
            max_seq_len=config.get("max_position_embeddings", _CONTEXT),
            attn_dropout=config.get("attention_dropout") or 0.0,
            norm_eps=config.get("rms_norm_eps", 1e-6),
            rope_base=rope_of(config, scalable=False).base,
            tie_word_embeddings=config.get("tie_word_embeddings", False),
        )
    )


def qwen2_hf_config(model: TransformerDecoder) -> dict[str, Any]:
    """The ``Qwen2Config`` that describes ``model``, read from its modules.

    Args:
        model: a decoder for which :func:`is_qwen2` holds; it may be sharded or checkpointed.
    """
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **llama_like_settings(model),
    }


def is_qwen2(model: nn.Module) -> bool:
    """Whether ``model`` is a llama with biases on queries, keys and values, and Qwen's rotation."""
    if not is_llama_like(model):
        return False
    attention = model.layers[0].attn
    return (
        isinstance(attention.pos_embeddings, Qwen2RotaryPositionalEmbeddings)
        and attention.q_norm is None
        and attention.q_proj.bias is not None
        and attention.output_proj.bias is None
    )


def check_qwen_window(config: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` where some layer of a Qwen model sees a part of the context only."""
    slides = config.get("use_sliding_window", False)
    full_layers = config.get("max_window_layers", _FULL_LAYERS)
    if slides and full_layers < config["num_hidden_layers"]:
        given = {"max_position_embeddings": _CONTEXT, **config}
        check_full_attention(given, config.get("sliding_window", _WINDOW))
