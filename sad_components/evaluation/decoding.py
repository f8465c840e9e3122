"""Logits of the next token for many growing sequences, without reading any of them twice.

Shape legend: B sequences, S new tokens, L cached positions, H key/value heads, D head width,
V vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torchtune.modules import TransformerDecoder

from sad_components.data.prefixes import common_prefix
from sad_components.models.hidden import head_of, restore_logits, stop_at_hidden


class Prefix(NamedTuple):
    """A sequence whose next token is asked for.

    Args:
        session: number under which what was read of it is remembered.
        token_ids: the whole sequence.
    """

    session: int
    token_ids: list[int]


class NextToken(Protocol):
    """What generation needs of a model: torchtune's, an exported one, anybody's.

    Attributes:
        max_seq_len: longest sequence it can read, in tokens.
    """

    max_seq_len: int

    def logits(self, sequences: Sequence[Prefix]) -> Tensor:
        """Logits of the token behind each sequence, shape [B, V], fp32."""
        ...


class FullDecoder:
    """The plain reference: every call reads every sequence from its start.

    Args:
        model: a torchtune decoder.
        vocab_size: tokens that may come out; None: all.
    """

    def __init__(self, model: TransformerDecoder, vocab_size: int | None = None) -> None:
        self._model, self._vocab_size = model, vocab_size
        self.max_seq_len = model.max_seq_len

    @torch.no_grad()
    def logits(self, sequences: Sequence[Prefix]) -> Tensor:
        device = next(self._model.parameters()).device
        rows = [
            self._model(torch.tensor([s.token_ids], device=device))[0, -1, : self._vocab_size]
            for s in sequences
        ]
        return torch.stack(rows).float()


class CachedDecoder:
    """Reads only what is new: keys and values of each session are kept.

    A session's cache holds for the longest common prefix of what it was asked before and is asked
    now. Sequences of unequal length are read together, each at its own positions; where one is
    shorter, its padding is written beside the cache and never attended to.

    The model is changed while this object uses it (caches in its attention layers, no output
    projection); :meth:`plain` gives it back for a while, :meth:`close` for good.

    Args:
        model: a torchtune decoder; put into eval mode.
        vocab_size: tokens that may come out; None: all.
        prefill_tokens: new tokens read at once, over all sequences.

    Raises:
        ValueError: the model's layers have no attention that can be cached.
    """

    def __init__(
        self,
        model: TransformerDecoder,
        vocab_size: int | None = None,
        prefill_tokens: int = 4096,
    ) -> None:
        self.max_seq_len = model.max_seq_len
        self._prefill_tokens = prefill_tokens
        self._head = head_of(model, vocab_size)
        self._device = self._head.weight_VD.device
        self._model = model.eval()
        attention: list[Any] = [getattr(layer, "attn", None) for layer in model.layers]
        if not all(hasattr(a, "kv_cache") for a in attention):
            raise ValueError(
                "a decoder with a cache needs torchtune's MultiHeadAttention in every layer; got "
                f"{type(model).__name__}: use FullDecoder"
            )
        self._attention = attention
        dtype = self._head.weight_VD.dtype
        self._kept = [(a.num_kv_heads, a._attention_call) for a in attention]
        self._caches = [
            _RowCache(a.num_kv_heads, a.head_dim, dtype, self._device) for a in attention
        ]
        self._rows: OrderedDict[int, int] = OrderedDict()
        self._read: list[list[int]] = []
        self._attach()

    @torch.no_grad()
    def logits(self, sequences: Sequence[Prefix]) -> Tensor:
        """Logits of the token behind each sequence, shape [B, V], fp32.

        Args:
            sequences: at least one, each of at least one token, no session twice.

        Raises:
            ValueError: a sequence is longer than ``max_seq_len``.
        """
        longest = max(len(s.token_ids) for s in sequences)
        if longest > self.max_seq_len:
            raise ValueError(
                f"the model reads at most {self.max_seq_len} tokens; got a sequence of {longest}"
            )
        rows = self._rows_of([s.session for s in sequences])
        self._reserve(len(self._read), longest)
        starts = [
            min(common_prefix(self._read[row], s.token_ids), len(s.token_ids) - 1)
            for row, s in zip(rows, sequences, strict=True)
        ]
        hidden_BD = self._advance(rows, starts, [s.token_ids for s in sequences])
        for row, s in zip(rows, sequences, strict=True):
            self._read[row] = list(s.token_ids)
        return self._head.logits(hidden_BD).float()

    @contextmanager
    def plain(self) -> Iterator[TransformerDecoder]:
        """The model as it was, without caches and with its output projection."""
        self.close()
        try:
            yield self._model
        finally:
            self._attach()

    def close(self) -> None:
        """Gives the model back; what was read is forgotten."""
        for attention, kept in zip(self._attention, self._kept, strict=True):
            attention.kv_cache, attention.cache_enabled = None, False
            attention.num_kv_heads, attention._attention_call = kept
        restore_logits(self._model)
        self._read = [[] for _ in self._read]

    def _attach(self) -> None:
        stop_at_hidden(self._model)
        for attention, cache in zip(self._attention, self._caches, strict=True):
            attention.kv_cache, attention.cache_enabled = cache, True
            # torchtune copies keys and values for every query head of a group, at every step;
            # with as many heads of both it does not, and the groups are made here.
            attention.num_kv_heads = attention.num_heads
            attention._attention_call = _grouped_attention

    def _rows_of(self, sessions: Sequence[int]) -> list[int]:
        """A row of the cache for each session: its own, or that of the one longest unused."""
        for session in sessions:
            if session in self._rows:
                self._rows.move_to_end(session)
        for session in sessions:
            if session not in self._rows:
                oldest = next(iter(self._rows), session)
                if len(self._rows) < len(sessions) or oldest in sessions:
                    row = len(self._rows)
                    self._read.append([])
                else:
                    row = self._rows.pop(oldest)
                    self._read[row] = []
                self._rows[session] = row
        return [self._rows[session] for session in sessions]

    def _reserve(self, rows: int, length: int) -> None:
        for cache in self._caches:
            cache.reserve(rows, min(self.max_seq_len, _rounded_up(length)))

    def _advance(self, rows: list[int], starts: list[int], sequences: list[list[int]]) -> Tensor:
        """Reads every sequence from its start on; the last hidden states, shape [B, D]."""
        out: list[Tensor | None] = [None] * len(rows)
        position = list(starts)
        while pending := [b for b, ids in enumerate(sequences) if position[b] < len(ids)]:
            share = max(1, self._prefill_tokens // len(pending))
            ends = [min(len(sequences[b]), position[b] + share) for b in pending]
            new = [sequences[b][position[b] : end] for b, end in zip(pending, ends)]
            hidden_BSD = self._forward(
                [rows[b] for b in pending], [position[b] for b in pending], new
            )
            for i, (b, end) in enumerate(zip(pending, ends)):
                position[b] = end
                if end == len(sequences[b]):
                    out[b] = hidden_BSD[i, len(new[i]) - 1]
        return torch.stack([hidden for hidden in out if hidden is not None])

    def _forward(self, rows: list[int], starts: list[int], new: list[list[int]]) -> Tensor:
        """Hidden states behind the new tokens of some rows of the cache, shape [B, S, D]."""
        rows, starts, new, asked = _without_gaps(rows, starts, new)
        width = max(map(len, new))
        limit = max(start + len(ids) for start, ids in zip(starts, new))
        padded = [ids + [0] * (width - len(ids)) for ids in new]
        tokens_BS = torch.tensor(padded, device=self._device)
        steps_S = torch.arange(width, device=self._device)
        start_B1 = torch.tensor(starts, device=self._device)[:, None]
        is_new_BS = steps_S < torch.tensor([len(ids) for ids in new], device=self._device)[:, None]
        position_BS = torch.where(is_new_BS, start_B1 + steps_S, 0)
        mask_BSL = torch.arange(limit, device=self._device) <= position_BS[..., None]
        for cache in self._caches:
            cache.plan(rows, torch.where(is_new_BS, position_BS, -1), limit)
        return self._model(tokens_BS, mask=mask_BSL, input_pos=position_BS)[asked]


def _without_gaps(
    rows: list[int], starts: list[int], new: list[list[int]]
) -> tuple[list[int], list[int], list[list[int]], list[int]]:
    """The same work with idle rows of the cache between, where that is cheaper.

    Keys and values of rows side by side are read where they lie; others are copied first, which
    costs more than an idle row's single token.

    Returns:
        Rows, starts and new tokens (none for an idle row), and where the rows asked for are.
    """
    low, high = min(rows), max(rows) + 1
    if max(map(len, new)) > 1 or high - low > 2 * len(rows):
        return rows, starts, new, list(range(len(rows)))
    work = dict(zip(rows, zip(starts, new, strict=True), strict=True))
    every = list(range(low, high))
    filled = [work.get(row, (0, [])) for row in every]
    return every, [s for s, _ in filled], [ids for _, ids in filled], [row - low for row in rows]


class _RowCache(nn.Module):
    """Keys and values by row and position; takes the place of torchtune's ``KVCache``.

    The last position of the storage takes padding and is never read.
    """

    def __init__(self, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self._store_2RHLD = torch.zeros(2, 0, heads, 1, width, dtype=dtype, device=device)
        self._rows: Tensor | slice = slice(0)
        self._write: tuple[Tensor, slice, Tensor] | None = None
        self._limit = 0

    def reserve(self, rows: int, length: int) -> None:
        """Makes room for at least ``rows`` sequences of ``length`` tokens."""
        _, old_rows, heads, old_length, width = self._store_2RHLD.shape
        if rows <= old_rows and length < old_length:
            return
        shape = (2, max(rows, old_rows), heads, max(length + 1, old_length), width)
        grown = self._store_2RHLD.new_zeros(shape)
        grown[:, :old_rows, :, : old_length - 1] = self._store_2RHLD[:, :, :, :-1]
        self._store_2RHLD = grown

    def plan(self, rows: list[int], position_BS: Tensor, limit: int) -> None:
        """Says where the next call of :meth:`update` writes, and how far it reads."""
        row_B = torch.tensor(rows, device=position_BS.device)
        self._write = (row_B[:, None], slice(None), position_BS)
        in_order = rows == list(range(rows[0], rows[0] + len(rows)))
        self._rows = slice(rows[0], rows[0] + len(rows)) if in_order else row_B
        self._limit = limit

    def update(self, key_BHSD: Tensor, value_BHSD: Tensor) -> tuple[Tensor, Tensor]:
        """Stores new keys and values; all of the planned rows, shape [B, H, L, D] each."""
        assert self._write is not None
        store = self._store_2RHLD
        store[0][self._write] = key_BHSD.transpose(1, 2)
        store[1][self._write] = value_BHSD.transpose(1, 2)
        keys, values = store[:, :, :, : self._limit][:, self._rows]
        return keys, values


def _grouped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> Tensor:
    """Attention in which each key head serves its group of query heads without a copy.

    Args:
        query: shape [B, H * G, S, D], the G heads of a group side by side.
        key, value: shape [B, H, L, D].
        mask: true where a query may look, shape [B, S, L].
        dropout_p: as torchtune passes it.
        is_causal: not read: the mask says it all.

    Returns:
        Shape [B, H * G, S, D].
    """
    batch, heads, width = key.shape[0], key.shape[1], query.shape[-1]
    group = query.shape[1] // heads
    together = query.reshape(batch, heads, group * query.shape[2], width)
    mask_B1QL = mask.repeat(1, group, 1)[:, None]
    out = scaled_dot_product_attention(together, key, value, mask_B1QL, dropout_p)
    return out.reshape(query.shape)


def _rounded_up(length: int, step: int = 256) -> int:
    return -(-length // step) * step
