"""From a tile of logits to loss, metrics and gradient, in as few passes over it as possible.

Shape legend: n tokens of a tile, V vocabulary, K kept tokens of a cached teacher.

"The gradient" is that of ``T^2 D + ce CE`` of each token with respect to its own logits; weights
and denominators belong to the caller, who folds them into matrices of the hidden width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sad_components.loss.closed_form import Pair, divergence
from sad_components.loss.hidden import Head
from sad_components.loss.spec import SpanLoss
from sad_components.loss.teacher_rows import TopKRows

#: What a tile measures for every token, at T = 1, in nats; ``agree`` is 0 or 1.
METRICS = ("ce", "kl", "entropy", "agree")
#: Entries of which :func:`_largest` takes the maximum first.
_BLOCK = 64


@dataclass
class TileResult:
    """What a tile gives back, beside the gradient in the place of its logits.

    Args:
        value_n: ``T^2 D + ce CE`` per token.
        metrics: per token, by the names in ``METRICS``; without a teacher only ``ce``.
    """

    value_n: Tensor
    metrics: dict[str, Tensor]


class Workspace:
    """Named buffers [rows, V] that tiles reuse: allocating them anew costs as much as a pass.

    Args:
        rows: tokens of the largest tile.
        vocab_size: V.
        dtype: fp32 or fp64.
        device: where the logits lie.
    """

    def __init__(
        self, rows: int, vocab_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.rows = max(1, rows)
        self._vocab_size, self._dtype, self._device = vocab_size, dtype, device
        self._buffers: dict[str, Tensor] = {}

    def buffer(self, name: str, like: Tensor) -> Tensor:
        """The buffer of this name, cut to the rows of ``like``."""
        if name not in self._buffers:
            self._buffers[name] = torch.empty(
                self.rows, self._vocab_size, dtype=self._dtype, device=self._device
            )
        return self._buffers[name][: len(like)]

    def load(self, name: str, projected_nV: Tensor, head: Head) -> Tensor:
        """Logits in wide precision, soft-capped: the projection itself where that is wide."""
        logits_nV = projected_nV
        if projected_nV.dtype != self._dtype:
            logits_nV = self.buffer(name, projected_nV).copy_(projected_nV)
        if head.softcap is not None:
            tanh_nV = logits_nV.div_(head.softcap).tanh_()
            if name == "student":
                torch.mul(tanh_nV, tanh_nV, out=self.buffer("slope", tanh_nV)).neg_().add_(1)
            tanh_nV.mul_(head.softcap)
        return logits_nV

    def store_gradient(self, gradient_nV: Tensor, projected_nV: Tensor, head: Head) -> None:
        """Through the soft-cap, back into the place of the projection."""
        if head.softcap is not None:
            gradient_nV.mul_(self.buffer("slope", gradient_nV))
        if gradient_nV.data_ptr() != projected_nV.data_ptr():
            projected_nV.copy_(gradient_nV)


def dense_tile(
    spec: SpanLoss,
    student_nV: Tensor,
    teacher_nV: Tensor | None,
    targets_n: Tensor,
    space: Workspace,
    wants_gradient: bool,
) -> TileResult:
    """Student and teacher over the whole vocabulary.

    Args:
        spec: the loss of these tokens.
        student_nV: logits in the workspace's dtype; receives the gradient.
        teacher_nV: logits, overwritten; None if there is no teacher.
        targets_n: token ids, int64.
        space: buffers.
        wants_gradient: whether to write it; else ``student_nV`` is left in disorder.
    """
    compares = spec.divergence is not None and teacher_nV is not None
    warm = compares and spec.temperature != 1.0
    log_p = space.buffer("log_p", student_nV).copy_(student_nV) if warm else student_nV
    pair: Pair | None = None
    metrics: dict[str, Tensor] = {}
    if teacher_nV is None:
        p = _normalise_(log_p, log_p.amax(-1, keepdim=True), space.buffer("p", log_p))
    else:
        log_q = space.buffer("log_q", teacher_nV).copy_(teacher_nV) if warm else teacher_nV
        pair, metrics = _compare(log_p, log_q, space)
        p = pair.p
    metrics["ce"] = -log_p.gather(-1, targets_n[:, None]).squeeze(-1)
    value_n = spec.ce * metrics["ce"]
    gradient = student_nV if wants_gradient else None
    if compares and pair is not None:
        if warm:
            pair = _at_temperature(student_nV, teacher_nV, spec.temperature, space)
        value_n = value_n + spec.temperature**2 * divergence(spec, pair, gradient)
        if gradient is not None and warm:
            gradient.mul_(spec.temperature)
    elif gradient is not None:
        gradient.zero_()
    if gradient is not None and spec.ce:
        gradient.add_(p, alpha=spec.ce)
        _subtract_at_(gradient, targets_n, spec.ce)
    return TileResult(value_n, metrics)


def _compare(log_p: Tensor, log_q: Tensor, space: Workspace) -> tuple[Pair, dict[str, Tensor]]:
    """Logits to a pair (both overwritten), and the metrics that need a teacher."""
    peak_q, first = _largest(log_q)
    peak_p = log_p.amax(-1, keepdim=True)
    agree = (log_p.gather(-1, first) >= peak_p).squeeze(-1)
    pair, entropy = _pair(log_p, log_q, peak_p, peak_q, space, "")
    return pair, {"agree": agree, "entropy": entropy, "kl": pair.forward_kl.squeeze(-1)}


def _largest(values_nV: Tensor) -> tuple[Tensor, Tensor]:
    """As ``max(-1, keepdim=True)``: block by block, because an index costs a CPU much per entry."""
    block = math.gcd(values_nV.shape[-1], _BLOCK)
    if block == 1:
        return values_nV.max(-1, keepdim=True)
    blocks_nBb = values_nV.unflatten(-1, (-1, block))
    peak, which = blocks_nBb.amax(-1).max(-1, keepdim=True)
    chosen_n1b = blocks_nBb.take_along_dim(which[..., None], dim=1)
    return peak, which * block + chosen_n1b.squeeze(1).argmax(-1, keepdim=True)


def _at_temperature(
    student_nV: Tensor, teacher_nV: Tensor | None, temperature: float, space: Workspace
) -> Pair:
    assert teacher_nV is not None
    log_p, log_q = student_nV.div_(temperature), teacher_nV.div_(temperature)
    peak_p, peak_q = log_p.amax(-1, keepdim=True), log_q.amax(-1, keepdim=True)
    return _pair(log_p, log_q, peak_p, peak_q, space, "_warm")[0]


def _pair(
    log_p: Tensor, log_q: Tensor, peak_p: Tensor, peak_q: Tensor, space: Workspace, suffix: str
) -> tuple[Pair, Tensor]:
    """Logits to a pair (both overwritten), and the entropy of q."""
    p = _normalise_(log_p, peak_p, space.buffer("p" + suffix, log_p))
    q = _normalise_(log_q, peak_q, space.buffer("q", log_q))
    room = space.buffer("room", log_p)
    entropy = -torch.mul(q, log_q, out=room).sum(-1)
    return Pair(log_p, p, q, log_q.sub_(log_p), room), entropy


def _normalise_(logits_nV: Tensor, peak_n1: Tensor, out: Tensor) -> Tensor:
    """Probabilities in ``out``; the logits become log-probabilities in place.

    The normaliser comes from the largest entry, whose probability is at least 1 / V.
    """
    torch.softmax(logits_nV, -1, out=out)
    logits_nV.sub_(peak_n1 - out.amax(-1, keepdim=True).log())
    return out


def _subtract_at_(gradient_nV: Tensor, targets_n: Tensor, amount: float) -> None:
    amounts = gradient_nV.new_full((len(targets_n), 1), -amount)
    gradient_nV.scatter_add_(-1, targets_n[:, None], amounts)


def top_k_tile(
    spec: SpanLoss,
    student_nV: Tensor,
    teacher: TopKRows,
    targets_n: Tensor,
    space: Workspace,
    wants_gradient: bool,
) -> TileResult:
    """As :func:`dense_tile`, with a cached teacher: K + 1 buckets instead of V tokens.

    ``kl`` and ``entropy`` are missing where the teacher holds no masses at T = 1.
    """
    ids = teacher.ids_NK
    warm = spec.divergence is not None and spec.temperature != 1.0
    chosen_n1, peak_n1 = student_nV.gather(-1, targets_n[:, None]), student_nV.amax(-1, True)
    agree = (student_nV.gather(-1, ids[:, :1]) >= peak_n1).squeeze(-1)
    unit_nV = space.buffer("log_p", student_nV).copy_(student_nV) if warm else student_nV
    unit = _Buckets.of(unit_nV, ids, space.buffer("p", student_nV))
    metrics = {"agree": agree, "ce": (unit.normaliser_n1 - chosen_n1).squeeze(-1)}
    if 1.0 in teacher.log_masses:
        pair, metrics["entropy"] = unit.pair(teacher.at(1.0))
        metrics["kl"] = pair.forward_kl.squeeze(-1)
    value_n = spec.ce * metrics["ce"]
    parts = []
    if spec.divergence is not None:
        buckets = unit
        if warm:
            student_nV.div_(spec.temperature)
            buckets = _Buckets.of(student_nV, ids, space.buffer("p_warm", student_nV))
        pair, _ = buckets.pair(teacher.at(spec.temperature))
        gradient = torch.empty_like(pair.p)
        value_n = value_n + spec.temperature**2 * divergence(spec, pair, gradient)
        parts.append((buckets, gradient * spec.temperature))
    if spec.ce:
        parts.append((unit, unit.log_masses.exp() * spec.ce))
    if wants_gradient:
        student_nV.zero_()
        for buckets, gradient in parts:
            buckets.spread_(gradient, student_nV)
        if spec.ce:
            _subtract_at_(student_nV, targets_n, spec.ce)
    return TileResult(value_n, metrics)


@dataclass
class _Buckets:
    """The student's K + 1 bucket masses, and how the tail's mass is shared among its tokens."""

    ids_nK: Tensor
    normaliser_n1: Tensor
    log_masses: Tensor
    share_nV: Tensor

    @classmethod
    def of(cls, logits_nV: Tensor, ids_nK: Tensor, out: Tensor) -> _Buckets:
        """Overwrites the logits; ``out`` becomes the share of each token in the tail."""
        kept_nK = logits_nV.gather(-1, ids_nK)
        logits_nV.scatter_(-1, ids_nK, torch.finfo(logits_nV.dtype).min)
        peak_n1 = logits_nV.amax(-1, keepdim=True)
        torch.softmax(logits_nV, -1, out=out)
        tail_n1 = peak_n1 - out.amax(-1, keepdim=True).log()
        logits = torch.cat([kept_nK, tail_n1], dim=-1)
        normaliser_n1 = logits.logsumexp(-1, keepdim=True)
        return cls(ids_nK, normaliser_n1, logits - normaliser_n1, out)

    def pair(self, teacher_log_masses: Tensor) -> tuple[Pair, Tensor]:
        """With the teacher's masses; and the teacher's entropy."""
        log_p = self.log_masses.clone()
        log_q = teacher_log_masses.to(log_p.dtype).log_softmax(-1)
        q = log_q.exp()
        entropy = -(q * log_q).sum(-1)
        return Pair(log_p, log_p.exp(), q, log_q - log_p, torch.empty_like(log_p)), entropy

    def spread_(self, gradient_nB: Tensor, out: Tensor) -> None:
        """Adds the gradient of the buckets' logits to that of the tokens' logits."""
        out.addcmul_(self.share_nV, gradient_nB[:, -1:])
        out.scatter_add_(-1, self.ids_nK, gradient_nB[:, :-1])
