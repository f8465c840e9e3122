"""Decoders whose positions are learned vectors added to the embeddings: GPT-2, OPT.

Shape legend: B rows, S positions, L positions looked at, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchtune.modules import (
    FeedForward,
    MultiHeadAttention,
    TransformerDecoder,
    TransformerSelfAttentionLayer,
)

from sad_components.models.blocks import head_width, projections


class LearnedPositions(nn.Embedding):
    """A vector for each position.

    Args:
        max_seq_len: number of positions.
        embed_dim: width.
        offset: rows of the table in front of position 0 (OPT has two).
    """

    def __init__(self, max_seq_len: int, embed_dim: int, offset: int = 0) -> None:
        super().__init__(max_seq_len + offset, embed_dim)
        self.offset = offset

    def forward(self, positions: Tensor) -> Tensor:
        """The positions' vectors [.., D].

        Args:
            positions: integers from 0 on.

        Raises:
            ValueError: a position beyond the last one learned (not checked while compiling).
        """
        known = self.weight.shape[0] - self.offset
        checkable = not torch.compiler.is_compiling() and not positions.is_meta
        if checkable and positions.numel() and int(positions.max()) >= known:
            raise ValueError(
                f"positions are learned up to {known - 1}; got position {int(positions.max())}: "
                f"shorten rows to {known} tokens (max_seq_len of the transform), or take a model "
                "with a longer context"
            )
        return super().forward(positions + self.offset)


class LearnedPositionsDecoder(TransformerDecoder):
    """torchtune's decoder, with learned positions added to its embeddings.

    Args:
        positions: of width D.
        project_in: from the embeddings' width to D; None where it is D.
        embed_dropout: on the sum, in [0, 1].
        decoder: the arguments of ``torchtune.modules.TransformerDecoder``.
    """

    def __init__(
        self,
        *,
        positions: LearnedPositions,
        project_in: nn.Linear | None = None,
        embed_dropout: float = 0.0,
        **decoder: Any,
    ) -> None:
        super().__init__(**decoder)
        self.positions = positions
        self.project_in = project_in
        self.embed_dropout = nn.Dropout(embed_dropout)

    def forward(
        self,
        tokens: Tensor,
        *,
        mask: Any = None,
        encoder_input: Tensor | None = None,
        encoder_mask: Tensor | None = None,
        input_pos: Tensor | None = None,
    ) -> Any:
        """As :meth:`torchtune.modules.TransformerDecoder.forward`.

        Args:
            tokens: ids [B, S].
            mask: bool [B, S, L], true where a position may look; or a ``BlockMask``.
            encoder_input: not used by these families.
            encoder_mask: not used by these families.
            input_pos: positions [B, S] or [S]. Without them a token's position is how many others
                its mask lets it see, which holds for causal rows, packed or padded on either
                side; and its index where there is no mask.

        Raises:
            ValueError: more positions than were learned, or a ``BlockMask`` without positions.
        """
        self._validate_inputs(tokens.shape[1], mask=mask, input_pos=input_pos)
        h = self.tok_embeddings(tokens)
        if self.project_in is not None:
            h = self.project_in(h)
        h = self.embed_dropout(h + self.positions(_positions(tokens, mask, input_pos)))
        hidden = []
        for i, layer in enumerate(self.layers):
            if i in self.output_hidden_states:
                hidden.append(h)
            h = layer(h, mask=mask, input_pos=input_pos)
        output = self.unembed(h)
        return [*hidden, output] if hidden else output


class PostNormLayer(TransformerSelfAttentionLayer):
    """torchtune's layer with the norms behind the residual sums, as in OPT 350M."""

    def forward(
        self, x: Tensor, *, mask: Any = None, input_pos: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """As :meth:`torchtune.modules.TransformerSelfAttentionLayer.forward`."""
        h = self.sa_norm(x + self.sa_scale(self.attn(x, x, mask=mask, input_pos=input_pos)))
        return self.mlp_norm(h + self.mlp_scale(self.mlp(h)))


def layer_norm_block(
    *,
    embed_dim: int,
    num_heads: int,
    intermediate_dim: int,
    max_seq_len: int,
    activation: nn.Module,
    norm_eps: float = 1e-5,
    dropout: float = 0.0,
    attn_dropout: float = 0.0,
    post_norm: bool = False,
) -> TransformerSelfAttentionLayer:
    """A block of GPT-2 or OPT: LayerNorm, biases everywhere, an MLP of two projections.

    Args:
        embed_dim: width; a multiple of ``num_heads``.
        num_heads: of queries, keys and values alike.
        intermediate_dim: width inside the MLP.
        max_seq_len: longest sequence, in tokens.
        activation: inside the MLP.
        norm_eps: epsilon of both norms.
        dropout: on what attention and MLP add to the residual stream.
        attn_dropout: on attention weights.
        post_norm: norms behind the residual sums instead of in front of attention and MLP.
    """
    head_dim = head_width(embed_dim, num_heads)
    layer = PostNormLayer if post_norm else TransformerSelfAttentionLayer
    return layer(
        attn=MultiHeadAttention(
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_dim=head_dim,
            max_seq_len=max_seq_len,
            attn_dropout=attn_dropout,
            **projections(embed_dim, num_heads, num_heads, head_dim, bias=True),
        ),
        mlp=FeedForward(
            gate_proj=nn.Linear(embed_dim, intermediate_dim),
            down_proj=nn.Linear(intermediate_dim, embed_dim),
            activation=activation,
        ),
        sa_norm=nn.LayerNorm(embed_dim, eps=norm_eps),
        mlp_norm=nn.LayerNorm(embed_dim, eps=norm_eps),
        sa_scale=nn.Dropout(dropout),
        mlp_scale=nn.Dropout(dropout),
    )


def _positions(tokens_BS: Tensor, mask: Any, input_pos: Tensor | None) -> Tensor:
    if input_pos is not None:
        return input_pos
    if mask is None:
        return torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
    if not isinstance(mask, Tensor):
        raise ValueError(
            f"learned positions cannot be read off a {type(mask).__name__}: pass input_pos with it"
        )
    return (mask.sum(-1) - 1).clamp(min=0)
