"""A decoder as ExecuTorch runs it: one sequence, caches of a fixed length, any number of new tokens.

Shape legend: S new tokens, L positions of the cache, H key/value heads, D head width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchtune.modules import MultiHeadAttention, TransformerDecoder


class ExportDecoder(nn.Module):
    """Reads new tokens behind those in its caches; its state is what ``torch.export`` takes along.

    A call writes keys and values at ``input_pos`` and on, and attends to everything up to there:
    what lies beyond is never read. One method so serves prefill (many tokens) and decoding (one).
    Attention and the cache's update are ExecuTorch's LLM kernels (``llama::custom_sdpa``,
    ``llama::update_cache``): their cost grows with what was read, not with the cache's length.

    The model is changed while this object uses it; :meth:`detach` gives it back.

    Args:
        model: a torchtune decoder in fp32; put into eval mode.
        max_seq_len: positions of the cache, L; at most the model's own.

    Raises:
        ValueError: attention that cannot be cached, another dtype, or a cache longer than the
            model's context.
    """

    def __init__(self, model: TransformerDecoder, max_seq_len: int) -> None:
        import executorch.extension.llm.custom_ops.custom_ops  # noqa: F401  registers the kernels

        super().__init__()
        attention = [getattr(layer, "attn", None) for layer in model.layers]
        if not all(isinstance(a, MultiHeadAttention) for a in attention):
            raise ValueError(
                f"{type(model).__name__} cannot be exported: a static cache needs torchtune's "
                "MultiHeadAttention in every layer (all families of sad_components.models have it)"
            )
        if not 1 <= max_seq_len <= model.max_seq_len:
            raise ValueError(
                f"max_seq_len is at least 1 and at most the model's context, {model.max_seq_len}; "
                f"got {max_seq_len}"
            )
        floating = {p.dtype for p in model.parameters() if p.is_floating_point()}
        if floating != {torch.float32}:
            raise ValueError(
                f"XNNPACK's kernels are exported from fp32 models; got {sorted(map(str, floating))}"
            )
        self.model = model.eval()
        self.max_seq_len = max_seq_len
        self._place = _Place()
        self._kept = []
        for a in attention:
            self._kept.append((a, a.num_kv_heads, a._attention_call))
            a.kv_cache = _StaticCache(a.num_kv_heads, a.head_dim, max_seq_len, self._place)
            a.cache_enabled = True
            # torchtune repeats keys and values for every query head of a group unless both are as
            # many; the kernel takes groups as they are.
            a.num_kv_heads = a.num_heads
            a._attention_call = self._attend

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        """Logits behind each new token, shape [1, S, V].

        Args:
            tokens: ids, int64, shape [1, S].
            input_pos: position of the first of them, int64, shape [1].
        """
        start = input_pos[0].item()
        torch._check(start >= 0)
        torch._check(start < self.max_seq_len)
        positions_1S = (input_pos + torch.arange(tokens.shape[1]))[None]
        self._place.start = start
        unread = torch.ones(1, 1, 1, dtype=torch.bool)  # torchtune wants a mask beside caches
        logits = self.model(tokens, mask=unread, input_pos=positions_1S)
        self._place.start = None
        return logits

    def detach(self) -> TransformerDecoder:
        """The model without caches, as it was."""
        for attention, num_kv_heads, call in self._kept:
            attention.kv_cache, attention.cache_enabled = None, False
            attention.num_kv_heads, attention._attention_call = num_kv_heads, call
        return self.model

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Any = None, **_: Any
    ) -> Tensor:
        """Causal attention to the cache, shape [1, heads, S, D]; takes torchtune's arguments."""
        out = torch.ops.llama.custom_sdpa(
            query.transpose(1, 2), key, value, self._place.start, None, 0.0, True
        )
        return out.transpose(1, 2)


class _Place:
    """Where the running call's tokens begin; all caches look there."""

    start: Any = None


class _StaticCache(nn.Module):
    """Keys and values [1, L, H, D]; takes the place of torchtune's ``KVCache``."""

    def __init__(self, heads: int, width: int, length: int, place: _Place) -> None:
        super().__init__()
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(1, length, heads, width), persistent=False)
        self._place = place

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes new keys and values [1, H, S, D]; everything, [1, L, H, D] each."""
        for new, cache in ((key, self.keys), (value, self.values)):
            torch.ops.llama.update_cache(new.transpose(1, 2).contiguous(), cache, self._place.start)
        return self.keys, self.values


def trim_positions_(model: TransformerDecoder, max_seq_len: int) -> TransformerDecoder:
    """``model`` with tables of positions no longer than ``max_seq_len``, in place."""
    for module in model.modules():
        table = getattr(module, "cache", None)
        if callable(getattr(module, "rope_init", None)) and isinstance(table, Tensor):
            module.cache = table[:max_seq_len].clone()
    return model
