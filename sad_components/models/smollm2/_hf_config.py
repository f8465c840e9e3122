"""Between a Hugging Face ``LlamaConfig`` (as a plain dict) and a torchtune decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torchtune.modules import (
    RMSNorm,
    RotaryPositionalEmbeddings,
    TiedLinear,
    TransformerDecoder,
)

from sad_components.models.smollm2._component_builders import smollm2

#: Settings of a LlamaConfig that this decoder has one value for, where the config names any.
_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
#: Settings of a LlamaConfig without which the decoder's shape is unknown.
_REQUIRED = (
    "vocab_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_size",
    "intermediate_size",
)


def smollm2_from_hf_config(config: Mapping[str, Any]) -> TransformerDecoder:
    """The decoder that a ``LlamaConfig`` describes, with random weights.

    Args:
        config: content of a ``config.json`` with ``model_type: llama``.

    Raises:
        ValueError: a missing setting, or one that this decoder cannot express (biases, scaled
            rotary positions, a head width other than hidden_size / num_attention_heads, ..).
    """
    for key in _REQUIRED:
        if not isinstance(config.get(key), int) or config[key] < 1:
            raise ValueError(
                f"a llama config must set {key} to an integer > 0; got {config.get(key)!r}"
            )
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise ValueError(
                f"this family needs {key}={value!r}; the config says {config[key]!r}: "
                "such a model needs a family of its own (sad_components/models/families.py)"
            )
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    if config.get("head_dim") not in (None, head_dim):
        raise ValueError(
            f"head_dim must be hidden_size / num_attention_heads = {head_dim}; "
            f"the config says {config['head_dim']}"
        )
    return smollm2(
        vocab_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        embed_dim=config["hidden_size"],
        intermediate_dim=config["intermediate_size"],
        max_seq_len=config.get("max_position_embeddings", 2048),
        rope_base=_rope_base(config),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        attn_dropout=config.get("attention_dropout") or 0.0,
        tie_word_embeddings=config.get("tie_word_embeddings", False),
    )


def smollm2_hf_config(model: TransformerDecoder) -> dict[str, Any]:
    """The ``LlamaConfig`` that describes ``model``, read from its modules.

    Args:
        model: a decoder for which :func:`is_smollm2` holds; it may be sharded or checkpointed.
    """
    attention, mlp = model.layers[0].attn, model.layers[0].mlp
    vocab_size, embed_dim = model.tok_embeddings.weight.shape
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": embed_dim,
        "intermediate_size": mlp.w1.weight.shape[0],
        "num_hidden_layers": len(model.layers),
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "max_position_embeddings": model.max_seq_len,
        "rope_theta": float(attention.pos_embeddings.base),
        "rms_norm_eps": model.norm.eps,
        "attention_dropout": attention.attn_dropout,
        "tie_word_embeddings": isinstance(model.output, TiedLinear),
        "initializer_range": 0.02,
        **_FIXED,
    }


def is_smollm2(model: nn.Module) -> bool:
    """Whether ``model`` has the structure of this family: rotary, RMSNorm, SwiGLU, no biases."""
    if not isinstance(model, TransformerDecoder) or not len(model.layers):
        return False
    attention = getattr(model.layers[0], "attn", None)
    mlp = getattr(model.layers[0], "mlp", None)
    return (
        attention is not None
        and isinstance(attention.pos_embeddings, RotaryPositionalEmbeddings)
        and attention.q_norm is None
        and getattr(mlp, "w3", None) is not None
        and isinstance(getattr(mlp, "activation", None), nn.SiLU)
        and isinstance(model.norm, RMSNorm)  # Gemma's is another: it scales by 1 + weight
        and not any(name.endswith("bias") for name, _ in model.named_parameters())
    )


def _rope_base(config: Mapping[str, Any]) -> float:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise ValueError(
            f"this family needs plain rotary positions; the config asks for rope_type={rope_type!r}"
        )
    return rope.get("rope_theta", config.get("rope_theta", 10_000.0))
