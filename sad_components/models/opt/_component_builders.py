"""Flexible builder of the OPT family."""

from __future__ import annotations

from collections import OrderedDict

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

#: Rows of OPT's table in front of position 0.
POSITION_OFFSET = 2


def opt(
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    embed_dim: int,
    intermediate_dim: int,
    max_seq_len: int = 2048,
    word_embed_dim: int | None = None,
    post_norm: bool = False,
    dropout: float = 0.0,
    attn_dropout: float = 0.0,
    tie_word_embeddings: bool = True,
) -> TransformerDecoder:
    """An OPT decoder with random weights, N(0, 0.02) from torch's global generator.

    Blocks of attention and a ReLU MLP with LayerNorm, biases and learned positions. Where the
    embeddings are narrower than the residual stream (OPT 350M), they are projected into it and
    its end back out, as part of the final norm, so that the hidden states in front of the head
    have the embeddings' width.

    Args:
        vocab_size: number of token ids.
        num_layers: number of blocks.
        num_heads: heads; divides ``embed_dim``.
        embed_dim: width of the residual stream.
        intermediate_dim: width inside the MLP.
        max_seq_len: number of learned positions.
        word_embed_dim: width of the embeddings; None for ``embed_dim``.
        post_norm: norms behind the residual sums and none at the end (OPT 350M).
        dropout: on what attention and MLP add to the residual stream, in [0, 1].
        attn_dropout: dropout on attention weights, in [0, 1].
        tie_word_embeddings: the output head is the embedding matrix.

    Returns:
        A ``TransformerDecoder``: token ids ``(B, S)`` to logits ``(B, S, V)``.

    Raises:
        ValueError: heads that do not divide as said above.
    """
    head_dim = head_width(embed_dim, num_heads)
    word_dim = word_embed_dim or embed_dim
    projected = word_dim != embed_dim
    tok_embeddings = nn.Embedding(vocab_size, word_dim)
    model = LearnedPositionsDecoder(
        positions=LearnedPositions(max_seq_len, embed_dim, POSITION_OFFSET),
        project_in=nn.Linear(word_dim, embed_dim, bias=False) if projected else None,
        tok_embeddings=tok_embeddings,
        layers=nn.ModuleList(
            layer_norm_block(
                embed_dim=embed_dim,
                num_heads=num_heads,
                intermediate_dim=intermediate_dim,
                max_seq_len=max_seq_len,
                activation=nn.ReLU(),
                dropout=dropout,
                attn_dropout=attn_dropout,
                post_norm=post_norm,
            )
            for _ in range(num_layers)
        ),
        max_seq_len=max_seq_len,
        num_heads=num_heads,
        head_dim=head_dim,
        norm=_end(embed_dim, word_dim, normed=not post_norm),
        output=output_head(tok_embeddings, word_dim, tie_word_embeddings),
    )
    return init_weights(model)


lora_opt = lora_version(opt)


def _end(embed_dim: int, word_dim: int, *, normed: bool) -> nn.Sequential:
    """What follows the last block: a norm where there is one, a projection where one is needed."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if normed:
        parts["final"] = nn.LayerNorm(embed_dim)
    if word_dim != embed_dim:
        parts["project_out"] = nn.Linear(embed_dim, word_dim, bias=False)
    return nn.Sequential(parts)
