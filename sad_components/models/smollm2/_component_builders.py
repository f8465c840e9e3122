"""Flexible builder of the SmolLM2 family: a llama with its defaults."""

from __future__ import annotations

from torchtune.modules import TransformerDecoder

from sad_components.models.llama import llama
from sad_components.models.lora import lora_version


def smollm2(
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    embed_dim: int,
    intermediate_dim: int,
    max_seq_len: int = 8192,
    rope_base: float = 100_000,
    norm_eps: float = 1e-5,
    attn_dropout: float = 0.0,
    tie_word_embeddings: bool = True,
) -> TransformerDecoder:
    """A SmolLM2 decoder with random weights, N(0, 0.02) from torch's global generator.

    Args, Returns and Raises: see :func:`sad_components.models.llama.llama`.
    """
    return llama(
        vocab_size=vocab_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        embed_dim=embed_dim,
        intermediate_dim=intermediate_dim,
        max_seq_len=max_seq_len,
        rope_base=rope_base,
        norm_eps=norm_eps,
        attn_dropout=attn_dropout,
        tie_word_embeddings=tie_word_embeddings,
    )


lora_smollm2 = lora_version(smollm2)
