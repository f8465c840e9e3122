"""Flexible builder of Qwen3's dense decoders, which torchtune 0.6.1 does not have."""

from __future__ import annotations

from typing import Any

from torchtune.models.qwen2._positional_embeddings import Qwen2RotaryPositionalEmbeddings
from torchtune.modules import RMSNorm, TransformerDecoder

from sad_components.models.blocks import NormFirstAttention, llama_like
from sad_components.models.lora import lora_version


def qwen3(
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    embed_dim: int,
    intermediate_dim: int,
    head_dim: int = 128,
    max_seq_len: int = 40_960,
    rope_base: float = 1_000_000,
    norm_eps: float = 1e-6,
    attn_dropout: float = 0.0,
    tie_word_embeddings: bool = True,
) -> TransformerDecoder:
    """A Qwen3 decoder with random weights, N(0, 0.02) from torch's global generator.

    A llama whose queries and keys are normed per head before they are turned to their positions;
    the width of a head is a setting of its own.

    Args:
        vocab_size: number of token ids.
        num_layers: number of blocks.
        num_heads: query heads; divides ``embed_dim``.
        num_kv_heads: key/value heads; divides ``num_heads``.
        embed_dim: width of the residual stream.
        intermediate_dim: width inside the MLP.
        head_dim: width of a head.
        max_seq_len: longest sequence, in tokens.
        rope_base: base of the rotary angles.
        norm_eps: epsilon of every RMSNorm.
        attn_dropout: dropout on attention weights, in [0, 1].
        tie_word_embeddings: the output head is the embedding matrix.

    Returns:
        A ``TransformerDecoder``: token ids ``(B, S)`` to logits ``(B, S, V)``.

    Raises:
        ValueError: heads that do not divide as said above.
    """
    rope = Qwen2RotaryPositionalEmbeddings(dim=head_dim, max_seq_len=max_seq_len, base=rope_base)

    def attention(**shared: Any) -> NormFirstAttention:
        norms = {name: RMSNorm(head_dim, eps=norm_eps) for name in ("q_norm", "k_norm")}
        return NormFirstAttention(**norms, **shared)

    return llama_like(
        attention,
        rope,
        vocab_size=vocab_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        embed_dim=embed_dim,
        intermediate_dim=intermediate_dim,
        max_seq_len=max_seq_len,
        norm_eps=norm_eps,
        attn_dropout=attn_dropout,
        tie_word_embeddings=tie_word_embeddings,
    )


lora_qwen3 = lora_version(qwen3)
