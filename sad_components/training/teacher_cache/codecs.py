"""What a cache keeps of a teacher's distribution, and what can be learnt from it.

Shape legend: N supervised tokens, D width, V vocabulary, K tokens kept or drawn.

========  =====================================  ==================  =====================
mode      keeps                                  divergences         temperatures
========  =====================================  ==================  =====================
topk      K log-probabilities, mass of the rest  all (K+1 buckets)   the stored ones
sampled   K draws                                forward KL          the stored ones
hidden    the last hidden state                  all, exact          all
========  =====================================  ==================  =====================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sad_components.loss import Head, HiddenRows, LossSpec, TopKRows
from sad_components.training.teacher_cache.errors import CacheError
from sad_components.training.teacher_cache.packing import IdSets, pack_bits, unpack_bits

#: A token's stored arrays by name, each of first dimension N.
Parts = dict[str, Tensor]
#: Nats per unit of ``-log`` of the code: cells shrink as probabilities grow, as p^(1/3).
_SCALE = 3.0
#: Log mass of a bucket that holds nothing: finite, and gone in any sum.
_EMPTY = -80.0


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
        codes_NK = torch.round((self._top + 0.5) * torch.exp(-below_NK / _SCALE) - 0.5)
        codes_NK = codes_NK.clamp(0, self._top - 1)  # the highest code marks the first choice
        codes_NK[:, 0] = self._top
        ids_NK, order_NK = rows.ids_NK.sort(dim=-1)
        codes_NK = codes_NK.gather(-1, order_NK).to(torch.int64)
        tails = torch.stack([rows.at(t)[:, -1] for t in self.temperatures], dim=-1)
        return {
            "ids": torch.from_numpy(self._sets.encode(ids_NK.cpu().numpy())),
            "log_probs": torch.from_numpy(pack_bits(codes_NK.cpu().numpy(), self.bits)),
            "log_tails": tails.clamp(min=_EMPTY).cpu().to(torch.float16),
        }

    def decode(self, parts: Parts) -> TopKRows:
        ids_NK = self._sets.decode(parts["ids"].numpy())
        codes_NK = unpack_bits(parts["log_probs"].numpy(), self.k, self.bits)
        first_N = codes_NK.argmax(axis=1)
        for values in (ids_NK, codes_NK):  # the first choice goes to column 0
            every = np.arange(len(values))
            values[every, first_N], values[:, 0] = values[:, 0].copy(), values[every, first_N]
        below_NK = _SCALE * torch.log(torch.from_numpy(codes_NK + 0.5) / (self._top + 0.5))
        tails = parts["log_tails"].float()
        masses = {}
        for i, temperature in enumerate(self.temperatures):
            tail_N1 = tails[:, i : i + 1]
            kept_N1 = torch.log(-torch.expm1(tail_N1.clamp(max=-1e-4)))
            kept_NK = torch.log_softmax(below_NK / temperature, dim=-1) + kept_N1
            masses[temperature] = torch.cat([kept_NK, tail_N1], dim=-1)
        return TopKRows(torch.from_numpy(ids_NK), masses)

    def refusal(self, spec: LossSpec) -> str | None:
        return _missing_temperature(spec, self.temperatures)


class SampledCodec(Codec):
    """Tokens drawn from the teacher: the gradient of the forward KL is right on average.

    The loss compares the student with the frequencies of the draws, so that its value lies above
    the true KL by a constant of the student (the entropy that the frequencies lack).

    Args:
        k: draws per token and temperature.
        vocab_size: V, above k.
        temperatures: which the loss may use; 1.0 is always there, for the metrics.

    Raises:
        ValueError: a value out of range.
    """

    mode = "sampled"

    def __init__(self, k: int, vocab_size: int, temperatures: Sequence[float] = (1.0,)) -> None:
        if not 0 < k < vocab_size:
            raise ValueError(f"k draws must lie between 1 and {vocab_size - 1}; got {k}")
        self.k, self.vocab_size = k, vocab_size
        self.temperatures = with_one(temperatures)
        self._sets = IdSets(k, vocab_size)

    def settings(self) -> dict[str, Any]:
        temperatures = list(self.temperatures)
        known = {"k": self.k, "vocab_size": self.vocab_size, "temperatures": temperatures}
        return {"mode": self.mode, **known}

    def encode(self, hidden_ND: Tensor, logits_NV: Tensor, generator: torch.Generator) -> Parts:
        parts = {}
        for i, temperature in enumerate(self.temperatures):
            shares_NV = torch.softmax(logits_NV.cpu() / temperature, dim=-1)
            drawn_NK = torch.multinomial(shares_NV, self.k, replacement=True, generator=generator)
            packed = self._sets.encode(drawn_NK.sort(dim=-1).values.numpy())
            parts[f"draws_{i}"] = torch.from_numpy(packed)
        return parts

    def decode(self, parts: Parts) -> TopKRows:
        """All temperatures' draws share one set of columns, as the rows of a batch must."""
        draws = [self._sets.decode(parts[f"draws_{i}"].numpy()) for i in range(len(parts))]
        ids_NM = torch.from_numpy(np.concatenate(draws, axis=1))
        width = min(ids_NM.shape[1], self.vocab_size - 1)
        columns_NW = _distinct(ids_NM, width, self.vocab_size)
        masses = {}
        for temperature, drawn_NK in zip(self.temperatures, draws):
            drawn_NK = torch.from_numpy(drawn_NK)
            hits_NW = (columns_NW[:, :, None] == drawn_NK[:, None, :]).sum(-1)
            shares = torch.log(hits_NW / self.k).clamp(min=_EMPTY)
            tail = shares.new_full((len(shares), 1), _EMPTY)
            masses[temperature] = torch.cat([shares, tail], dim=-1)
        order = masses[1.0][:, :-1].argsort(dim=-1, descending=True, stable=True)
        behind = torch.cat([order, torch.full_like(order[:, :1], width)], dim=-1)
        masses = {t: values.gather(-1, behind) for t, values in masses.items()}
        return TopKRows(columns_NW.gather(-1, order), masses)

    def refusal(self, spec: LossSpec) -> str | None:
        for kind, loss in spec.by_kind.items():
            if loss.weight > 0 and loss.divergence not in (None, "forward_kl"):
                return (
                    f"it holds draws (mode sampled), which give forward_kl only, but "
                    f"loss.{kind.label} asks for {loss.divergence}: mode topk gives every "
                    "divergence over its buckets, mode hidden every one exactly"
                )
        return _missing_temperature(spec, self.temperatures)


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


def _distinct(ids_NM: Tensor, width: int, vocab_size: int) -> Tensor:
    """Each row's distinct ids, then others that it lacks, int64 [N, width]."""
    ordered = ids_NM.sort(dim=-1).values
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    spare = min(2 * ids_NM.shape[1], vocab_size)  # so many that enough of them are not drawn
    taken = torch.zeros(len(ids_NM), spare + 1, dtype=torch.bool)
    taken.scatter_(-1, ids_NM.clamp(max=spare), True)
    candidates = torch.cat([ordered, torch.arange(spare).expand(len(ids_NM), spare)], dim=-1)
    useless = torch.cat([repeated, taken[:, :spare]], dim=-1)
    return candidates.gather(-1, useless.long().argsort(dim=-1, stable=True)[:, :width])
