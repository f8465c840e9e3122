"""Flexible builder of llama-like decoders: Llama 1 to 3, SmolLM2, Mistral."""

from __future__ import annotations

from collections.abc import Mapping

from torchtune.models.llama3_1 import Llama3ScaledRoPE
from torchtune.modules import MultiHeadAttention, RotaryPositionalEmbeddings, TransformerDecoder

from sad_components.models.blocks import head_width, llama_like
from sad_components.models.lora import lora_version


def llama(
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    embed_dim: int,
    intermediate_dim: int,
    max_seq_len: int = 4096,
    head_dim: int | None = None,
    rope_base: float = 10_000,
    rope_scaling: Mapping[str, float] | None = None,
    norm_eps: float = 1e-5,
    attn_dropout: float = 0.0,
    tie_word_embeddings: bool = False,
) -> TransformerDecoder:
    """A llama decoder with random weights, N(0, 0.02) from torch's global generator.

    Pre-norm blocks of grouped-query attention with rotary positions and a SwiGLU MLP, no biases.
    For weights that depend on a seed alone see :func:`sad_components.models.from_scratch`.

    Args:
        vocab_size: number of token ids.
        num_layers: number of blocks.
        num_heads: query heads; divides ``embed_dim`` where no ``head_dim`` is given.
        num_kv_heads: key/value heads; divides ``num_heads``.
        embed_dim: width of the residual stream.
        intermediate_dim: width inside the MLP.
        max_seq_len: longest sequence, in tokens.
        head_dim: width of a head; None for ``embed_dim / num_heads``.
        rope_base: base of the rotary angles.
        rope_scaling: Llama 3.1's scaling of them: ``factor``, ``low_freq_factor``,
            ``high_freq_factor`` and ``original_max_position_embeddings``; None for none.
        norm_eps: epsilon of every RMSNorm.
        attn_dropout: dropout on attention weights, in [0, 1].
        tie_word_embeddings: the output head is the embedding matrix.

    Returns:
        A ``TransformerDecoder``: token ids ``(B, S)`` to logits ``(B, S, V)``.

    Raises:
        ValueError: heads that do not divide as said above.
    """
    width = head_dim or head_width(embed_dim, num_heads)
    return llama_like(
        MultiHeadAttention,
        _rope(width, max_seq_len, rope_base, rope_scaling),
        vocab_size=vocab_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=width,
        embed_dim=embed_dim,
        intermediate_dim=intermediate_dim,
        max_seq_len=max_seq_len,
        norm_eps=norm_eps,
        attn_dropout=attn_dropout,
        tie_word_embeddings=tie_word_embeddings,
    )


lora_llama = lora_version(llama)


def _rope(
    width: int, max_seq_len: int, base: float, scaling: Mapping[str, float] | None
) -> RotaryPositionalEmbeddings | Llama3ScaledRoPE:
    if scaling is None:
        return RotaryPositionalEmbeddings(dim=width, max_seq_len=max_seq_len, base=base)
    return Llama3ScaledRoPE(
        dim=width,
        max_seq_len=max_seq_len,
        base=base,
        scale_factor=scaling["factor"],
        low_freq_factor=scaling["low_freq_factor"],
        high_freq_factor=scaling["high_freq_factor"],
        old_context_len=scaling["original_max_position_embeddings"],
    )
