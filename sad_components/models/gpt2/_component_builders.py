"""Flexible builder of the GPT-2 family."""

from __future__ import annotations

from torch import nn
from torchtune.modules import TransformerDecoder

from sad_components.models.blocks import head_width, output_head
from sad_components.models.initialization import init_weights
from sad_components.models.learned_positions import (
    LearnedPositions,
    LearnedPositionsDecoder,
    layer_norm_block,
)
from sad_components.models.lora import lora_version


def gpt2(
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    embed_dim: int,
    intermediate_dim: int | None = None,
    max_seq_len: int = 1024,
    norm_eps: float = 1e-5,
    dropout: float = 0.0,
    attn_dropout: float = 0.0,
    tie_word_embeddings: bool = True,
) -> TransformerDecoder:
    """A GPT-2 decoder with random weights, N(0, 0.02) from torch's global generator.

    Pre-norm blocks (LayerNorm) with learned positions, biases and GELU in its tanh form. For
    weights that depend on a seed alone see :func:`sad_components.models.from_scratch`.

    Args:
        vocab_size: number of token ids.
        num_layers: number of blocks.
        num_heads: heads; divides ``embed_dim``.
        embed_dim: width of the residual stream.
        intermediate_dim: width inside the MLP; None for ``4 * embed_dim``.
        max_seq_len: number of learned positions.
        norm_eps: epsilon of every LayerNorm.
        dropout: on the embeddings and on what attention and MLP add, in [0, 1].
        attn_dropout: dropout on attention weights, in [0, 1].
        tie_word_embeddings: the output head is the embedding matrix.

    Returns:
        A ``TransformerDecoder``: token ids ``(B, S)`` to logits ``(B, S, V)``.

    Raises:
        ValueError: heads that do not divide as said above.
    """
    head_dim = head_width(embed_dim, num_heads)
    tok_embeddings = nn.Embedding(vocab_size, embed_dim)
    model = LearnedPositionsDecoder(
        positions=LearnedPositions(max_seq_len, embed_dim),
        embed_dropout=dropout,
        tok_embeddings=tok_embeddings,
        layers=nn.ModuleList(
            layer_norm_block(
                embed_dim=embed_dim,
                num_heads=num_heads,
                intermediate_dim=intermediate_dim or 4 * embed_dim,
                max_seq_len=max_seq_len,
                activation=nn.GELU(approximate="tanh"),
                norm_eps=norm_eps,
                dropout=dropout,
                attn_dropout=attn_dropout,
            )
            for _ in range(num_layers)
        ),
        max_seq_len=max_seq_len,
        num_heads=num_heads,
        head_dim=head_dim,
        norm=nn.LayerNorm(embed_dim, eps=norm_eps),
        output=output_head(tok_embeddings, embed_dim, tie_word_embeddings),
    )
    return init_weights(model)


lora_gpt2 = lora_version(gpt2)
