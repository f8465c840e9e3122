"""Between a Hugging Face ``LlamaConfig`` (as a plain dict) and a torchtune decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torchtune.models.llama3_1 import Llama3ScaledRoPE
from torchtune.modules import RotaryPositionalEmbeddings, TransformerDecoder

from sad_components.models.blocks import is_llama_like, llama_like_settings
from sad_components.models.hf_settings import LLAMA_SIZES, check_fixed, check_sizes, rope_of
from sad_components.models.llama._component_builders import llama

#: Settings of a LlamaConfig that this decoder has one value for, where the config names any.
_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}


def llama_from_hf_config(config: Mapping[str, Any]) -> TransformerDecoder:
    """The decoder that a ``LlamaConfig`` describes, with random weights.

    Args:
        config: content of a ``config.json`` with ``model_type: llama``.

    Raises:
        ValueError: a missing setting, or one that this decoder cannot express (biases, rotary
            positions scaled otherwise than in Llama 3.1, ..).
    """
    check_sizes(config, LLAMA_SIZES, "llama")
    check_fixed(config, _FIXED, "llama")
    rope = rope_of(config, scalable=True)
    return llama(
        vocab_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        embed_dim=config["hidden_size"],
        intermediate_dim=config["intermediate_size"],
        max_seq_len=config.get("max_position_embeddings", 2048),
        head_dim=config.get("head_dim"),
        rope_base=rope.base,
        rope_scaling=rope.scaling,
        norm_eps=config.get("rms_norm_eps", 1e-6),
        attn_dropout=config.get("attention_dropout") or 0.0,
        tie_word_embeddings=config.get("tie_word_embeddings", False),
    )


def llama_hf_config(model: TransformerDecoder) -> dict[str, Any]:
    """The ``LlamaConfig`` that describes ``model``, read from its modules.

    Args:
        model: a decoder for which :func:`is_llama` holds; it may be sharded or checkpointed.
    """
    attention = model.layers[0].attn
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": attention.head_dim,
        **llama_like_settings(model),
        **_FIXED,
    }
    rope = attention.pos_embeddings
    if isinstance(rope, Llama3ScaledRoPE):
        settings["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": float(rope.scale_factor),
            "low_freq_factor": float(rope.low_freq_factor),
            "high_freq_factor": float(rope.high_freq_factor),
            "original_max_position_embeddings": rope.old_context_len,
        }
    return settings


def is_llama(model: nn.Module) -> bool:
    """Whether ``model`` has the structure of this family: rotary, RMSNorm, SwiGLU, no biases."""
    if not is_llama_like(model):
        return False
    attention = model.layers[0].attn
    return (
        isinstance(attention.pos_embeddings, RotaryPositionalEmbeddings | Llama3ScaledRoPE)
        and attention.q_norm is None
        and not any(name.endswith("bias") for name, _ in model.named_parameters())
    )
