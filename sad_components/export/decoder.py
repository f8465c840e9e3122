"""A decoder as ExecuTorch runs it: one sequence, static caches, any number of new tokens.

Shape legend: S new tokens, L positions of the cache, H key/value heads, d head width, D width,
V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torchtune.modules import MultiHeadAttention, RMSNorm, TransformerDecoder

from sad_components.models.blocks import NormFirstAttention

_KNOWN_ATTENTION = (MultiHeadAttention.forward, NormFirstAttention.forward)


class ExportDecoder(nn.Module):
    """Reads new tokens behind those in its caches; its state is what ``torch.export`` takes along.

    A call writes keys and values at ``input_pos`` and on, and attends to everything up to there:
    what lies beyond is never read. So one method serves prefill (many tokens) and decoding (one).
    Attention and the cache's update are ExecuTorch's LLM kernels (``llama::custom_sdpa``,
    ``llama::update_cache``): their cost grows with what was read, not with the cache's length.
    Norms and rotary positions are written with products by small constant matrices instead of
    means and slices, which XNNPACK does not take where the number of tokens varies: all of a layer
    but its attention is then one call of XNNPACK.

    Args:
        model: a torchtune decoder in fp32; it is changed, and belongs to this object from then on.
        max_seq_len: positions of the cache, L; at most the model's own.

    Raises:
        ValueError: attention that cannot be cached, another dtype, positions or norms that are not
            known here, or a cache longer than the model's context.
    """

    def __init__(self, model: TransformerDecoder, max_seq_len: int) -> None:
        import executorch.extension.llm.custom_ops.custom_ops  # noqa: F401  registers the kernels

        super().__init__()
        attention = [getattr(layer, "attn", None) for layer in model.layers]
        for a in attention:
            if getattr(type(a), "forward", None) not in _KNOWN_ATTENTION:
                raise ValueError(
                    f"{type(a).__name__} cannot be exported: a static cache is known for the "
                    "attention of this project's families (torchtune's MultiHeadAttention, and "
                    "NormFirstAttention)"
                )
        if not 1 <= max_seq_len <= model.max_seq_len:
            raise ValueError(
                f"max_seq_len is at least 1 and at most the model's context, {model.max_seq_len}; "
                f"got {max_seq_len}"
            )
        floating = {p.dtype for p in model.parameters() if p.is_floating_point()}
        if floating != {torch.float32}:
            raise ValueError(
                "XNNPACK's kernels are exported from fp32 models; this one has "
                f"{', '.join(sorted(map(str, floating)))}: load it with dtype fp32"
            )
        self.max_seq_len = max_seq_len
        self._place = _Place()
        self.angles = _Angles(attention[0].pos_embeddings, attention[0].head_dim, max_seq_len)
        for layer in model.layers:
            layer.attn = _Attention(layer.attn, self.angles.turn_dd, max_seq_len, self._place)
        _replace_norms_(model)
        _replace_activations_(model)
        self.model = model.eval()

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        """Logits behind each new token, shape [1, S, V].

        Args:
            tokens: ids, int64, shape [1, S].
            input_pos: position of the first of them, int64, shape [1].
        """
        start = input_pos[0].item()
        torch._check(start >= 0)
        torch._check(start < self.max_seq_len)
        positions_S = input_pos + torch.arange(tokens.shape[1])
        self._place.start = start
        self._place.angles = self.angles(positions_S)
        logits = self.model(tokens, input_pos=positions_S[None])
        self._place.start = self._place.angles = None
        return logits


class _Place:
    """What all layers need of the running call: where it begins, and its positions' angles."""

    start: Any = None
    angles: tuple[Tensor, Tensor] | None = None


class _Attention(nn.Module):
    """Self-attention of new tokens to the cache and to each other, heads as [1, S, H, d].

    Args:
        attention: whose projections and norms are used.
        turn_dd: see :class:`_Angles`.
        length: L.
        place: of the running call.
    """

    cache_enabled = False  # of torchtune's caches, which would want a mask

    def __init__(
        self, attention: MultiHeadAttention, turn_dd: Tensor | None, length: int, place: _Place
    ) -> None:
        super().__init__()
        self.q_proj, self.k_proj = attention.q_proj, attention.k_proj
        self.v_proj, self.output_proj = attention.v_proj, attention.output_proj
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.num_heads, self.num_kv_heads = attention.num_heads, attention.num_kv_heads
        self.head_dim = attention.head_dim
        self._norm_first = isinstance(attention, NormFirstAttention)
        for name in ("keys", "values"):
            cache = torch.zeros(1, length, self.num_kv_heads, self.head_dim)
            self.register_buffer(name, cache, persistent=False)
        turns = turn_dd if attention.pos_embeddings is not None else None
        self.register_buffer("turn_dd", turns, persistent=False)
        self._place = place

    def forward(self, x: Tensor, y: Tensor | None = None, **_: Any) -> Tensor:
        """Takes torchtune's arguments; the mask is causal, positions are the running call's."""
        # -1 for S, and numbers for the rest: so XNNPACK takes the reshaping along
        query = self.q_proj(x).view(1, -1, self.num_heads, self.head_dim)
        key = self.k_proj(x).view(1, -1, self.num_kv_heads, self.head_dim)
        value = self.v_proj(x).view(1, -1, self.num_kv_heads, self.head_dim)
        query, key = self._placed(query, self.q_norm), self._placed(key, self.k_norm)
        start = self._place.start
        torch.ops.llama.update_cache(key, self.keys, start)
        torch.ops.llama.update_cache(value, self.values, start)
        out = torch.ops.llama.custom_sdpa(query, self.keys, self.values, start, None, 0.0, True)
        return self.output_proj(out.view(1, -1, self.num_heads * self.head_dim))

    def _placed(self, heads: Tensor, norm: nn.Module | None) -> Tensor:
        """Heads normed and turned to their positions, in the order of the model."""
        if norm is not None and self._norm_first:
            heads = norm(heads)
        if self.turn_dd is not None:
            cos, sin = self._place.angles
            heads = heads * cos + linear(heads, self.turn_dd) * sin
        return heads if norm is None or self._norm_first else norm(heads)


class _Angles(nn.Module):
    """Cosines and sines of rotary positions, a pair for each of the d numbers of a head.

    Args:
        rope: torchtune's rotary positions of any kind, or None for a model without.
        width: d.
        length: L.
    """

    def __init__(self, rope: nn.Module | None, width: int, length: int) -> None:
        super().__init__()
        if rope is None:
            self.turn_dd = None
            return
        table = getattr(rope, "cache", None)
        turn_dd = torch.zeros(width, width)
        if isinstance(table, Tensor) and table.shape[1:] == (width // 2, 2):
            # neighbours turn together, as in Llama
            cos, sin = (t.repeat_interleave(2, dim=1) for t in table[:length].unbind(-1))
            even = torch.arange(0, width, 2)
            turn_dd[even, even + 1], turn_dd[even + 1, even] = -1.0, 1.0
        elif isinstance(table, Tensor) and table.shape[1:] == (2 * width,):
            # the halves turn together, as in Qwen
            cos, sin = table[:length].split(width, dim=1)
            low = torch.arange(width // 2)
            turn_dd[low, low + width // 2], turn_dd[low + width // 2, low] = -1.0, 1.0
        else:
            raise ValueError(
                f"{type(rope).__name__} cannot be exported: its table is neither that of "
                "torchtune's RotaryPositionalEmbeddings nor of its Qwen2 version"
            )
        for name, value in (("cos_Ld", cos), ("sin_Ld", sin), ("turn_dd", turn_dd)):
            self.register_buffer(name, value.float().contiguous(), persistent=False)

    def forward(self, positions_S: Tensor) -> tuple[Tensor, Tensor] | None:
        """Both, shape [1, S, 1, d]; None without rotary positions."""
        if self.turn_dd is None:
            return None
        return tuple(t[positions_S][None, :, None] for t in (self.cos_Ld, self.sin_Ld))


class _Norm(nn.Module):
    """RMSNorm or LayerNorm, its means as products with a row of 1 / D.

    Args:
        scale: of each number, shape [D].
        bias: the same; None for RMSNorm, which leaves the mean where it is.
        eps: under the root.
    """

    def __init__(self, scale: Tensor, bias: Tensor | None, eps: float) -> None:
        super().__init__()
        self.scale, self.bias, self.eps = nn.Parameter(scale, False), bias, eps
        width = scale.shape[0]
        self.register_buffer("mean_1D", torch.full((1, width), 1 / width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is not None:
            x = x - linear(x, self.mean_1D)
        normed = x * torch.rsqrt(linear(x * x, self.mean_1D) + self.eps) * self.scale
        return normed if self.bias is None else normed + self.bias


class _TanhGELU(nn.Module):
    """GELU in its tanh form, written out: XNNPACK takes it for the exact one, 2e-4 off."""

    def forward(self, x: Tensor) -> Tensor:
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
        return 0.5 * x * (1 + torch.tanh(inner))


def _replace_activations_(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GELU) and child.approximate == "tanh":
                setattr(module, name, _TanhGELU())


def _replace_norms_(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, RMSNorm):
                setattr(module, name, _Norm(child.scale.detach(), None, child.eps))
            elif isinstance(child, nn.LayerNorm):
                if child.weight is None or child.bias is None or len(child.normalized_shape) != 1:
                    raise ValueError(f"{name} is a LayerNorm without scale or bias, unknown here")
                bias = nn.Parameter(child.bias.detach(), False)
                setattr(module, name, _Norm(child.weight.detach(), bias, child.eps))
