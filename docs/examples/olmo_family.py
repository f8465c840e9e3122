"""A family from your own code: OLMo, which neither torchtune nor this package has.

Importing this module makes ``model_type: olmo`` known. A config names the functions at its end,
so that it is imported wherever they are used:

    teacher: {_component_: olmo_family.from_pretrained, path: OLMo-7B-hf}
    student: {_component_: olmo_family.cut_student, path: OLMo-7B-hf, num_layers: 16}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchtune.models.qwen2._positional_embeddings import Qwen2RotaryPositionalEmbeddings
from torchtune.modules import (
    FeedForward,
    MultiHeadAttention,
    TiedLinear,
    TransformerDecoder,
    TransformerSelfAttentionLayer,
)

from sad_components.models import cut_student, from_pretrained, from_scratch
from sad_components.models.families import register_family
from sad_components.models.family import Family
from sad_components.models.hf_settings import check_fixed, check_sizes, rope_of
from sad_components.models.renaming import Renaming

#: What this decoder has one value for. A config that says otherwise is refused, not misread.
FIXED = {"hidden_act": "silu", "attention_bias": False, "clip_qkv": None}
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


# 1. The decoder: torchtune's modules, put together as the architecture wants.


def olmo(
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    embed_dim: int,
    intermediate_dim: int,
    max_seq_len: int = 2048,
    rope_base: float = 10_000,
    tie_word_embeddings: bool = False,
) -> TransformerDecoder:
    """An OLMo decoder: a llama whose norms have no parameters."""
    head_dim = embed_dim // num_heads
    # pairs elements as Hugging Face does, so that no row of a projection has to move
    rope = Qwen2RotaryPositionalEmbeddings(head_dim, max_seq_len, rope_base)

    def linear(inputs: int, outputs: int) -> nn.Linear:
        return nn.Linear(inputs, outputs, bias=False)

    def norm() -> nn.LayerNorm:
        return nn.LayerNorm(embed_dim, elementwise_affine=False)

    def block() -> TransformerSelfAttentionLayer:
        attention = MultiHeadAttention(
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            q_proj=linear(embed_dim, embed_dim),
            k_proj=linear(embed_dim, num_kv_heads * head_dim),
            v_proj=linear(embed_dim, num_kv_heads * head_dim),
            output_proj=linear(embed_dim, embed_dim),
            pos_embeddings=rope,
            max_seq_len=max_seq_len,
        )
        mlp = FeedForward(
            gate_proj=linear(embed_dim, intermediate_dim),
            down_proj=linear(intermediate_dim, embed_dim),
            up_proj=linear(embed_dim, intermediate_dim),
        )
        return TransformerSelfAttentionLayer(attention, mlp, sa_norm=norm(), mlp_norm=norm())

    embeddings = nn.Embedding(vocab_size, embed_dim)
    return TransformerDecoder(
        tok_embeddings=embeddings,
        layers=nn.ModuleList(block() for _ in range(num_layers)),
        max_seq_len=max_seq_len,
        num_heads=num_heads,
        head_dim=head_dim,
        norm=norm(),
        output=TiedLinear(embeddings) if tie_word_embeddings else linear(embed_dim, vocab_size),
    )


# 2. The config, both ways.


def from_hf_config(config: Mapping[str, Any]) -> TransformerDecoder:
    """The decoder that a config.json describes."""
    check_sizes(config, SIZES, "olmo")
    check_fixed(config, FIXED, "olmo")
    return olmo(
        vocab_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        embed_dim=config["hidden_size"],
        intermediate_dim=config["intermediate_size"],
        max_seq_len=config["max_position_embeddings"],
        rope_base=rope_of(config, scalable=False).base,
        tie_word_embeddings=config.get("tie_word_embeddings", False),
    )


def hf_config(model: TransformerDecoder) -> dict[str, Any]:
    """The config.json that describes a decoder, read from its modules."""
    attention = model.layers[0].attn
    vocab_size, embed_dim = model.tok_embeddings.weight.shape
    return {
        "architectures": ["OlmoForCausalLM"],
        "model_type": "olmo",
        "vocab_size": vocab_size,
        "hidden_size": embed_dim,
        "intermediate_size": model.layers[0].mlp.w1.weight.shape[0],
        "num_hidden_layers": len(model.layers),
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "max_position_embeddings": model.max_seq_len,
        "rope_theta": float(attention.pos_embeddings.base),
        "tie_word_embeddings": isinstance(model.output, TiedLinear),
        **FIXED,
    }


# 3. The weights, both ways: here only the names differ.

NAMES = Renaming(
    "olmo",
    outside={
        "model.embed_tokens.weight": "tok_embeddings.weight",
        "lm_head.weight": "output.weight",
    },
    inside={
        "self_attn.q_proj.weight": "attn.q_proj.weight",
        "self_attn.k_proj.weight": "attn.k_proj.weight",
        "self_attn.v_proj.weight": "attn.v_proj.weight",
        "self_attn.o_proj.weight": "attn.output_proj.weight",
        "mlp.gate_proj.weight": "mlp.w1.weight",
        "mlp.down_proj.weight": "mlp.w2.weight",
        "mlp.up_proj.weight": "mlp.w3.weight",
    },
)


def to_tune(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """torchtune's state dict; a tied head is the embedding and not stored twice."""
    named = dict(state_dict)
    if config.get("tie_word_embeddings", False):
        named.pop("lm_head.weight", None)
    return NAMES.to_tune(named)


def to_hf(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Hugging Face's state dict."""
    return NAMES.to_hf(state_dict)


# 4. How to know one, and the entry.


def is_olmo(model: nn.Module) -> bool:
    """Whether a module is such a decoder."""
    return (
        isinstance(model, TransformerDecoder)
        and isinstance(model.norm, nn.LayerNorm)
        and not model.norm.elementwise_affine
    )


register_family(
    Family(
        model_type="olmo",
        layers_key="num_hidden_layers",
        build=from_hf_config,
        to_tune=to_tune,
        to_hf=to_hf,
        hf_config=hf_config,
        matches=is_olmo,
    )
)

__all__ = ["cut_student", "from_pretrained", "from_scratch", "olmo"]
