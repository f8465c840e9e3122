"""Where the rows of a cache come from: a model on this machine (a server: ``server.py``).

Shape legend: B rows, S positions, N supervised tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sad_components.data.batch import collate, row_key
from sad_components.data.transform import TokenizedTrajectory
from sad_components.loss import LossSpec, SpanLoss
from sad_components.loss.functional import entropy
from sad_components.loss.spec import NUM_KINDS
from sad_components.loss.structured import kind_sums
from sad_components.spans import SpanKind
from sad_components.training.teacher_cache.codecs import Codec, Parts
from sad_components.training.teachers import LiveTeacher

#: Supervised tokens whose logits are held at once.
_CHUNK_TOKENS = 256


@dataclass
class EncodedRow:
    """What is stored of one row.

    Args:
        parts: the codec's arrays.
        counts: supervised tokens per span kind, length 4.
        entropy: sum of the teacher's entropies per span kind, nats, length 4.
    """

    parts: Parts
    counts: list[int]
    entropy: list[float]


class Source(Protocol):
    """Makes what a cache stores."""

    codec: Codec

    def fingerprint(self) -> dict[str, Any]:
        """The parts that belong to the teacher."""
        ...

    def encode(self, rows: Sequence[TokenizedTrajectory]) -> list[EncodedRow]:
        """One result per row; equal for equal rows, whatever was encoded before."""
        ...


def supervision(kinds: Iterable[SpanKind]) -> LossSpec:
    """A loss that reads the tokens of these kinds: what a cache covers."""
    losses: dict[str, Any] = {SpanKind(kind).label: SpanLoss() for kind in kinds}
    return LossSpec(**losses, branch="own")


class LiveSource:
    """A teacher that runs here.

    Args:
        teacher: the model.
        codec: what to keep.
        spec: which tokens (:func:`supervision`).
        pad_id: of the tokenizer.
        batch_size: rows per forward pass.
        device: where the teacher lies.
        weights: hashes that identify the teacher (``fingerprint.hash_weights``, ..).
    """

    def __init__(
        self,
        teacher: LiveTeacher,
        codec: Codec,
        spec: LossSpec,
        *,
        pad_id: int,
        batch_size: int,
        device: torch.device,
        weights: dict[str, Any],
    ) -> None:
        self.teacher, self.codec, self.spec = teacher, codec, spec
        self.pad_id, self.batch_size, self.device = pad_id, batch_size, device
        self._weights = weights

    def fingerprint(self) -> dict[str, Any]:
        return dict(self._weights)

    @torch.no_grad()
    def encode(self, rows: Sequence[TokenizedTrajectory]) -> list[EncodedRow]:
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
        encoded: dict[int, EncodedRow] = {}
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            batch = collate([rows[i] for i in places], self.pad_id, self.spec).to(self.device)
            chosen_BS = self.spec.supervised(batch.span_ids_BS)
            counts = chosen_BS.sum(dim=1).tolist()
            hidden = self.teacher.rows(batch, chosen_BS).hidden_ND.split(counts)
            kinds = batch.span_ids_BS[chosen_BS].split(counts)
            for place, hidden_ND, kinds_N in zip(places, hidden, kinds):
                encoded[place] = self._encode_row(hidden_ND, kinds_N, row_key(rows[place]))
        return [encoded[i] for i in range(len(rows))]

    def _encode_row(self, hidden_ND: Tensor, kinds_N: Tensor, key: str) -> EncodedRow:
        generator = torch.Generator().manual_seed(int(key[:15], 16))
        pieces, entropies = [], []
        for part_ND in hidden_ND.split(_CHUNK_TOKENS):
            logits_NV = self.teacher.head.logits(part_ND).float()
            entropies.append(entropy(logits_NV))
            pieces.append(self.codec.encode(part_ND, logits_NV, generator))
        parts = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        return EncodedRow(parts, *span_totals(torch.cat(entropies), kinds_N))


def span_totals(entropy_N: Tensor, kinds_N: Tensor) -> tuple[list[int], list[float]]:
    """Tokens and summed entropy per span kind, each of length 4."""
    counts = torch.bincount(kinds_N.long(), minlength=NUM_KINDS)
    return counts.tolist(), kind_sums(entropy_N, kinds_N.long()).tolist()
