"""Last hidden states where something is supervised; the last layer computes little else.

A loss reads the last hidden state at its supervised positions only. Keys and values of the last
layer are needed everywhere, but its queries, output projection and MLP, and the final norm, only
there. Value and gradient stay what they were (attention dropout draws other numbers).

Shape legend: B rows, S positions, Q most chosen positions of a row, N chosen positions, D width.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask
from torchtune.modules import (
    MultiHeadAttention,
    TransformerDecoder,
    TransformerSelfAttentionLayer,
)

from sad_components.models.blocks import NormFirstAttention

#: Above this share of chosen positions (Q / S) the plain path is as fast.
WORTHWHILE = 0.9
_ATTRIBUTE = "_last_layer_handover"


class Chosen(NamedTuple):
    """Chosen positions, as indices.

    Args:
        positions_BQ: each row's chosen positions in order, then others as filling.
        flat_N: chosen positions of a [B * S] tensor, in reading order.
        slots_N: the same positions in a [B * Q] tensor.
        queries: whether the attention, too, runs at these positions only.
    """

    positions_BQ: Tensor
    flat_N: Tensor
    slots_N: Tensor
    queries: bool


def hidden_at(
    model: TransformerDecoder, tokens_BS: Tensor, chosen_BS: Tensor, **attention: Any
) -> Tensor:
    """The normed last hidden states [N, D] at the chosen positions, in reading order.

    Equals ``model(tokens_BS, **attention)[chosen_BS]``, which is what runs where
    :func:`saves_at` says "nothing", or where nearly every position is chosen.

    Args:
        model: a decoder after :func:`sad_components.models.hidden.stop_at_hidden`. At the first
            call its last layer (this instance alone) learns to take chosen positions.
        tokens_BS: int64.
        chosen_BS: bool.
        attention: ``mask`` and ``input_pos``, as torchtune's decoder takes them.
    """
    saved = saves_at(model)
    if saved == "nothing":
        return model(tokens_BS, **attention)[chosen_BS]
    dense = not isinstance(attention.get("mask"), BlockMask)
    chosen = _indices(chosen_BS, queries=dense and saved == "queries and mlp")
    if chosen.positions_BQ.shape[1] > WORTHWHILE * tokens_BS.shape[1]:
        return model(tokens_BS, **attention)[chosen_BS]
    handover = _handover_of(model)
    handover.chosen = chosen
    try:
        return model(tokens_BS, **attention).squeeze(0)
    finally:
        handover.chosen = None


def saves_at(model: nn.Module) -> str:
    """What the last layer skips at positions that are not chosen.

    Returns:
        "queries and mlp", for torchtune's own self-attention layer and an attention of its own or
        :class:`~sad_components.models.blocks.NormFirstAttention`; "mlp", where
        the attention is of another class (Gemma 2) or a call's mask is a ``BlockMask``; "nothing",
        for any other layer, or with key-value caches set up.
    """
    layers = getattr(model, "layers", None)
    layer = _unwrapped(layers[-1]) if isinstance(layers, nn.ModuleList) and layers else None
    if not _is_plain(layer, TransformerSelfAttentionLayer):
        return "nothing"
    if getattr(layer.attn, "kv_cache", None) is not None:
        return "nothing"
    plain = any(_is_plain(layer.attn, kind) for kind in (MultiHeadAttention, NormFirstAttention))
    return "queries and mlp" if plain else "mlp"


def _is_plain(module: Any, kind: type[nn.Module]) -> bool:
    """Whether ``module`` computes what ``kind`` does (a sharded module is of a derived class)."""
    if not isinstance(module, kind) or type(module).forward is not kind.forward:
        return False
    own = module.__dict__.get("forward")
    return own is None or getattr(own, "__func__", None) is _layer_forward


def _unwrapped(layer: nn.Module) -> nn.Module:
    """The layer inside activation checkpointing."""
    return layer._checkpoint_wrapped_module if isinstance(layer, CheckpointWrapper) else layer


class _Handover:
    """A hook that hands the chosen positions of a call to the last layer as an argument.

    As an argument they are there again when activation checkpointing runs the layer anew.
    """

    def __init__(self) -> None:
        self.chosen: Chosen | None = None

    def __call__(self, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return None if self.chosen is None else (args, {**kwargs, "chosen": self.chosen})


def _handover_of(model: TransformerDecoder) -> _Handover:
    """The model's hook; installed at the first call."""
    layer = model.layers[-1]
    handover = layer.__dict__.get(_ATTRIBUTE)
    if handover is None:
        handover = layer.__dict__[_ATTRIBUTE] = _Handover()
        layer.register_forward_pre_hook(handover, with_kwargs=True)
        inner = _unwrapped(layer)
        inner.forward = MethodType(_layer_forward, inner)
    return handover


def _indices(chosen_BS: Tensor, queries: bool) -> Chosen:
    flat_N = chosen_BS.flatten().nonzero().squeeze(1)
    width = chosen_BS.shape[1]
    counts_B = chosen_BS.sum(dim=1)
    most = max(int(counts_B.max()), 1)
    positions_BQ = chosen_BS.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    before_B = counts_B.cumsum(0) - counts_B
    row_N = flat_N // width
    within_N = torch.arange(len(flat_N), device=flat_N.device) - before_B[row_N]
    return Chosen(positions_BQ, flat_N, row_N * most + within_N, queries)


def _layer_forward(
    self: TransformerSelfAttentionLayer,
    x: Tensor,
    *,
    mask: Any = None,
    input_pos: Tensor | None = None,
    chosen: Chosen | None = None,
    **kwargs: Any,
) -> Tensor:
    """The layer's own forward; with ``chosen``, [1, N, D] of what it returns there."""
    if chosen is None:
        return TransformerSelfAttentionLayer.forward(
            self, x, mask=mask, input_pos=input_pos, **kwargs
        )
    h = self.sa_norm(x)
    if chosen.queries:
        attended = _attend(self.attn, h, chosen, mask, input_pos)
    else:
        attended = _at(self.attn(h, h, mask=mask, input_pos=input_pos), chosen.flat_N)
    h = self.sa_scale(attended) + _at(x, chosen.flat_N)
    return h + self.mlp_scale(self.mlp(self.mlp_norm(h)))


def _attend(
    attn: MultiHeadAttention,
    h_BSD: Tensor,
    chosen: Chosen,
    mask_BSS: Tensor | None,
    input_pos: Tensor | None,
) -> Tensor:
    """``attn(h, h)`` with queries at the chosen positions only: [1, N, D]."""
    rows, width, dim = h_BSD.shape
    where_BQ = chosen.positions_BQ
    h_BQD = h_BSD.gather(1, where_BQ[..., None].expand(-1, -1, dim))
    query_pos = where_BQ
    if input_pos is not None:
        query_pos = input_pos.expand(rows, width).gather(1, where_BQ)
    q = _heads(attn, attn.q_proj(h_BQD), attn.q_norm, query_pos)
    k = _heads(attn, attn.k_proj(h_BSD), attn.k_norm, input_pos)
    v = attn.v_proj(h_BSD).view(rows, width, -1, attn.head_dim).transpose(1, 2)
    if attn.num_heads != attn.num_kv_heads:
        k, v = (t.repeat_interleave(attn.num_heads // attn.num_kv_heads, dim=1) for t in (k, v))
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=_query_mask(attn, mask_BSS, where_BQ, width),
        dropout_p=attn.attn_dropout if attn.training else 0.0,
    )
    return attn.output_proj(_at(out.transpose(1, 2).flatten(2), chosen.slots_N))


def _heads(
    attn: MultiHeadAttention, projected: Tensor, norm: nn.Module | None, positions: Tensor | None
) -> Tensor:
    """Heads [B, H, S, d] with positions in, normed where the model does."""
    if isinstance(attn, NormFirstAttention):
        return attn.heads(projected, norm, positions)
    heads = projected.view(*projected.shape[:2], -1, attn.head_dim)
    if attn.pos_embeddings is not None:
        heads = attn.pos_embeddings(heads, input_pos=positions)
    heads = heads.transpose(1, 2)
    return heads if norm is None else norm(heads)


def _query_mask(
    attn: MultiHeadAttention, mask_BSS: Tensor | None, where_BQ: Tensor, width: int
) -> Tensor | None:
    """What the chosen queries see: [B, 1, Q, S]; None for everything."""
    if mask_BSS is not None:
        index = where_BQ[..., None].expand(-1, -1, mask_BSS.shape[2])
        return mask_BSS.expand(len(where_BQ), -1, -1).gather(1, index)[:, None]
    if not attn.is_causal:
        return None
    return (torch.arange(width, device=where_BQ.device) <= where_BQ[..., None])[:, None]


def _at(tensor: Tensor, index_N: Tensor) -> Tensor:
    """Rows of [B, S, D] by flat index: [1, N, D], since some MLPs want three dimensions."""
    return tensor.flatten(0, 1).index_select(0, index_N)[None]
