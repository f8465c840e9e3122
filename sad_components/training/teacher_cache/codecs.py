"""What a cache keeps of a teacher's distribution, and what can be learnt from it.

Shape legend: N supervised tokens, D width, V vocabulary, K tokens kept or drawn.

========  =====================================  ==================  =====================
mode      keeps                                  divergences         temperatures
========  =====================================  ==================  =====================
topk      K log-probabilities, mass of the rest  all (K+1 buckets)   the stored ones
sampled   as topk, and draws from the rest       forward KL          the stored ones
hidden    the last hidden state                  all, exact          all
========  =====================================  ==================  =====================
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sad_components.loss import Head, HiddenRows, LossSpec, TopKRows
from sad_components.training.teacher_cache.errors import CacheError
from sad_components.training.teacher_cache.packing import IdSets, pack_bits, unpack_bits

#: A token's stored arrays by name, each of first dimension N.
Parts = dict[str, Tensor]
#: A code counts ``exp(-nats below the first choice / scale)``, so that its cells follow the
#: probability to the power 1 / scale at T = 1; 3 loses least, rows that reach far down take more.
_LEAST_SCALE = 3.0
_SCALE_STEP = 0.25
#: Log mass of a bucket that holds nothing: finite, and gone in any sum.
_EMPTY = -80.0
#: Probability that stands for none where something must be drawn or its logarithm taken.
_FLOOR = 1e-30


class Codec(ABC):
    """Turns a teacher's view of tokens into stored arrays and back.

    Attributes:
        mode: its name in configs.
    """

    mode: str

    @abstractmethod
    def encode(self, hidden_ND: Tensor, logits_NV: Tensor, generator: torch.Generator) -> Parts:
        """Arrays to store, on the CPU.

        Args:
            hidden_ND: the teacher's last hidden states.
            logits_NV: its logits, fp32.
            generator: for codecs that draw.
        """

    @abstractmethod
    def decode(self, parts: Parts) -> HiddenRows | TopKRows:
        """What the loss takes."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Plain JSON from which :func:`make_codec` makes an equal codec."""

    def refusal(self, spec: LossSpec) -> str | None:
        """Why a loss cannot be computed from what is stored; None if it can."""
        return None


class TopKCodec(Codec):
    """The K most probable tokens with their log-probabilities, and the mass of all others.

    Temperatures share one set of log-probabilities: at T the kept ones are proportional to
    ``p ** (1 / T)``, so that only the mass of the rest is stored for each.

    Args:
        k: tokens to keep.
        vocab_size: V, above k.
        temperatures: which the loss may use; 1.0 is always there, for the metrics.
        bits: of a stored log-probability.

    Raises:
        ValueError: a value out of range.
    """

    mode = "topk"

    def __init__(
        self, k: int, vocab_size: int, temperatures: Sequence[float] = (1.0,), bits: int = 8
    ) -> None:
        if not 0 < k < vocab_size:
            raise ValueError(
                f"k must lie between 1 and {vocab_size - 1} (below the vocabulary, so that there "
                f"is a tail); got {k}"
            )
        if not 4 <= bits <= 16:
            raise ValueError(f"bits of a log-probability must lie between 4 and 16; got {bits}")
        self.k, self.vocab_size, self.bits = k, vocab_size, bits
        self.temperatures = with_one(temperatures)
        self._sets = IdSets(k, vocab_size)
        self._top = (1 << bits) - 1
        self._least_scale = _LEAST_SCALE * max(self.temperatures)

    def settings(self) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "k": self.k,
            "vocab_size": self.vocab_size,
            "temperatures": list(self.temperatures),
            "bits": self.bits,
        }

    def encode(self, hidden_ND: Tensor, logits_NV: Tensor, generator: torch.Generator) -> Parts:
        rows = TopKRows.from_logits(logits_NV, self.k, self.temperatures)
        return self.pack(rows)

    def pack(self, rows: TopKRows) -> Parts:
        """Arrays to store for rows that hold this codec's temperatures."""
        kept_NK = rows.at(1.0)[:, :-1].double()
        below_NK = kept_NK[:, :1] - kept_NK  # nats below the first choice
        scales_N1 = self._scales(below_NK.amax(-1, keepdim=True))
        reach_N1 = scales_N1.double() * _SCALE_STEP
        codes_NK = torch.round((self._top + 0.5) * torch.exp(-below_NK / reach_N1) - 0.5)
        codes_NK = codes_NK.clamp(0, self._top - 1)  # the highest code marks the first choice
        codes_NK[:, 0] = self._top
        ids_NK, order_NK = rows.ids_NK.sort(dim=-1)
        codes_NK = codes_NK.gather(-1, order_NK).to(torch.int64)
        tails = torch.stack([rows.at(t)[:, -1] for t in self.temperatures], dim=-1)
        return {
            "ids": torch.from_numpy(self._sets.encode(ids_NK.cpu().numpy())),
            "log_probs": torch.from_numpy(pack_bits(codes_NK.cpu().numpy(), self.bits)),
            "scales": scales_N1.cpu(),
            "log_tails": tails.clamp(min=_EMPTY).cpu().to(torch.float16),
        }

    def _scales(self, lowest_N1: Tensor) -> Tensor:
        """Smallest scales, in steps, whose lowest code reaches so many nats down, uint8 [N, 1]."""
        needed = (lowest_N1 / math.log(2 * self._top + 1)).clamp(min=self._least_scale)
        return torch.ceil(needed / _SCALE_STEP).clamp(max=255).to(torch.uint8)

    def decode(self, parts: Parts) -> TopKRows:
        ids_NK = self._sets.decode(parts["ids"].numpy())
        codes_NK = unpack_bits(parts["log_probs"].numpy(), self.k, self.bits)
        first_N = codes_NK.argmax(axis=1)
        for values in (ids_NK, codes_NK):  # the first choice goes to column 0
            every = np.arange(len(values))
            values[every, first_N], values[:, 0] = values[:, 0].copy(), values[every, first_N]
        reach_N1 = parts["scales"].float() * _SCALE_STEP
        above_NK = reach_N1 * torch.log(torch.from_numpy(codes_NK + 0.5) / (self._top + 0.5))
        tails = parts["log_tails"].float()
        masses = {}
        for i, temperature in enumerate(self.temperatures):
            tail_N1 = tails[:, i : i + 1]
            kept_N1 = torch.log(-torch.expm1(tail_N1.clamp(max=-1e-4)))
            kept_NK = torch.log_softmax(above_NK / temperature, dim=-1) + kept_N1
            masses[temperature] = torch.cat([kept_NK, tail_N1], dim=-1)
        return TopKRows(torch.from_numpy(ids_NK), masses)

    def refusal(self, spec: LossSpec) -> str | None:
        return _missing_temperature(spec, self.temperatures)


@dataclass
class DrawnRows(TopKRows):
    """The teacher's top tokens, and draws that stand for all others.

    A forward KL against these masses has the exact one's gradient on average over draws; its
    value lacks a constant of the student.

    Args:
        offsets: temperature -> what is to be added to a token's forward KL, nats, shape [N].
    """

    offsets: dict[float, Tensor] = field(default_factory=dict)

    def __getitem__(self, rows: Tensor | slice) -> DrawnRows:
        top = super().__getitem__(rows)
        offsets = {t: values[rows] for t, values in self.offsets.items()}
        return DrawnRows(top.ids_NK, top.log_masses, offsets)


class SampledCodec(Codec):
    """Top tokens as :class:`TopKCodec` keeps them, and draws from the rest, K in all.

    Args:
        k: K.
        vocab_size: V.
        temperatures: which the loss may use; 1.0 is always there, for the metrics.
        bits: of a stored log-probability.
        draws: how many of the K are drawn from the rest, at each temperature.

    Raises:
        ValueError: a value out of range.
    """

    mode = "sampled"

    def __init__(
        self,
        k: int,
        vocab_size: int,
        temperatures: Sequence[float] = (1.0,),
        bits: int = 8,
        draws: int = 32,
    ) -> None:
        if not 0 < draws < k or k + draws > vocab_size:
            raise ValueError(
                f"draws must lie between 1 and k - 1, and k + draws within the vocabulary of "
                f"{vocab_size}; got {draws} draws and k {k}"
            )
        self.top = TopKCodec(k - draws, vocab_size, temperatures, bits)
        self.draws, self.temperatures = draws, self.top.temperatures
        self._sets = IdSets(draws, vocab_size)

    def settings(self) -> dict[str, Any]:
        k = self.top.k + self.draws
        return {**self.top.settings(), "mode": self.mode, "k": k, "draws": self.draws}

    def encode(self, hidden_ND: Tensor, logits_NV: Tensor, generator: torch.Generator) -> Parts:
        logits_NV = logits_NV.cpu()
        rows = TopKRows.from_logits(logits_NV, self.top.k, self.temperatures)
        parts = self.top.pack(rows)
        for i, temperature in enumerate(self.temperatures):
            q_NV = torch.softmax(logits_NV / temperature, dim=-1).scatter(-1, rows.ids_NK, 0.0)
            # a row without a tail draws from what is left at all, with no mass
            floor_NV = torch.ones_like(q_NV).scatter(-1, rows.ids_NK, 0.0) * _FLOOR
            drawn_NM = torch.multinomial(
                q_NV + floor_NV, self.draws, replacement=True, generator=generator
            ).sort(dim=-1)[0]
            parts[f"draws_{i}"] = torch.from_numpy(self._sets.encode(drawn_NM.numpy()))
            tail_N1 = q_NV.sum(-1, keepdim=True)
            shares_NM = _hits(drawn_NM, drawn_NM) / self.draws  # of each draw's own token
            missing_N = torch.xlogy(q_NV, q_NV).sum(-1)
            missing_N -= (tail_N1 * (tail_N1 * shares_NM).clamp(min=_FLOOR).log()).mean(-1)
            parts[f"offsets_{i}"] = missing_N.to(torch.float16)
        return parts

    def decode(self, parts: Parts) -> DrawnRows:
        top = self.top.decode(parts)
        each = [
            torch.from_numpy(self._sets.decode(parts[f"draws_{i}"].numpy()))
            for i in range(len(self.temperatures))
        ]
        drawn_NM = torch.cat(each, dim=-1)
        width = min(drawn_NM.shape[1], self.top.vocab_size - self.top.k - 1)
        columns_NW = _distinct(drawn_NM, top.ids_NK, width, self.top.vocab_size)
        masses, offsets = {}, {}
        for i, (temperature, drawn) in enumerate(zip(self.temperatures, each)):
            stored = top.at(temperature)
            share_NW = torch.log(_hits(columns_NW, drawn) / self.draws) + stored[:, -1:]
            columns = [stored[:, :-1], share_NW, torch.full_like(stored[:, -1:], _EMPTY)]
            masses[temperature] = torch.cat(columns, dim=-1).clamp(min=_EMPTY)
            offsets[temperature] = parts[f"offsets_{i}"].float()
        return DrawnRows(torch.cat([top.ids_NK, columns_NW], dim=-1), masses, offsets)

    def refusal(self, spec: LossSpec) -> str | None:
        for kind, loss in spec.by_kind.items():
            if loss.weight > 0 and loss.divergence not in (None, "forward_kl"):
                return (
                    f"it holds draws (mode sampled), which give forward_kl only, but "
                    f"loss.{kind.label} asks for {loss.divergence}: mode topk gives every "
                    "divergence over its buckets, mode hidden every one exactly"
                )
        return self.top.refusal(spec)


class HiddenCodec(Codec):
    """The last hidden state as it is: all that a live teacher gives, for its head's price.

    Args:
        width: D.
        dtype: of the hidden states, a torch dtype's name.
        head: turns them into logits; needed for decoding only.
    """

    mode = "hidden"

    def __init__(self, width: int, dtype: str, head: Head | None = None) -> None:
        self.width, self.dtype, self.head = width, dtype, head

    def settings(self) -> dict[str, Any]:
        return {"mode": self.mode, "width": self.width, "dtype": self.dtype}

    def encode(self, hidden_ND: Tensor, logits_NV: Tensor, generator: torch.Generator) -> Parts:
        return {"hidden": hidden_ND.to("cpu", getattr(torch, self.dtype))}

    def decode(self, parts: Parts) -> HiddenRows:
        if self.head is None:
            raise CacheError("hidden states need the teacher's head, but the cache has none")
        return HiddenRows(parts["hidden"], self.head)


_CODECS = {codec.mode: codec for codec in (TopKCodec, SampledCodec, HiddenCodec)}


def make_codec(settings: Mapping[str, Any]) -> Codec:
    """The codec of these settings.

    Raises:
        ValueError: an unknown mode.
    """
    known = dict(settings)
    mode = known.pop("mode", None)
    if mode not in _CODECS:
        raise ValueError(f"mode is one of {', '.join(_CODECS)}; got {mode!r}")
    return _CODECS[mode](**known)


def with_one(temperatures: Sequence[float]) -> tuple[float, ...]:
    """Distinct temperatures in ascending order, 1.0 among them.

    Raises:
        ValueError: one that is not positive.
    """
    if not all(t > 0 for t in temperatures):
        raise ValueError(f"temperatures must be > 0; got {list(temperatures)}")
    return tuple(sorted({1.0, *map(float, temperatures)}))


def _missing_temperature(spec: LossSpec, stored: Sequence[float]) -> str | None:
    for kind, loss in spec.by_kind.items():
        compares = loss.divergence is not None and loss.weight > 0
        if compares and loss.temperature not in stored:
            return (
                f"it holds probabilities at the temperatures {', '.join(map(str, stored))}, but "
                f"loss.{kind.label} asks for {loss.temperature}: cache with that temperature "
                "among cache.temperatures, or with mode hidden, which gives every one"
            )
    return None


def _hits(ids_NW: Tensor, drawn_NM: Tensor) -> Tensor:
    """How often each of ``ids_NW`` is among a row's draws, shape [N, W]."""
    return (ids_NW[:, :, None] == drawn_NM[:, None, :]).sum(-1)


def _distinct(ids_NM: Tensor, others_NK: Tensor, width: int, vocab_size: int) -> Tensor:
    """Each row's distinct ids, then ids that neither it nor ``others_NK`` has, [N, width]."""
    n, m = ids_NM.shape
    ordered = ids_NM.sort(dim=-1).values
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    spare = min(2 * m + others_NK.shape[1], vocab_size)  # so many that enough of them are free
    taken = torch.zeros(n, spare + 1, dtype=torch.bool)
    taken.scatter_(-1, torch.cat([ids_NM, others_NK], dim=-1).clamp(max=spare), True)
    candidates = torch.cat([ordered, torch.arange(spare).expand(n, spare)], dim=-1)
    useless = torch.cat([repeated, taken[:, :spare]], dim=-1)
    return candidates.gather(-1, useless.long().argsort(dim=-1, stable=True)[:, :width])
