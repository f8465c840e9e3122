"""The divergences of ``functional`` once more, with their gradients in closed form.

Shape legend: N tokens, M outcomes (a vocabulary, or the buckets of a cached teacher).

With p the student's and q the teacher's probabilities and ``a = dD/dp``, the gradient with respect
to the student's logits is ``p * (a - <p, a>)``. Everything works in buffers that the caller
lends, because these passes over [N, M] are bound by memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sad_components.loss.spec import SpanLoss


@dataclass
class Pair:
    """Two distributions, and room to work in.

    Args:
        log_p, p: the student's, shape [N, M].
        q: the teacher's probabilities, shape [N, M].
        log_ratio: ``log q - log p``, shape [N, M]; finite.
        room: a buffer of shape [N, M].
    """

    log_p: Tensor
    p: Tensor
    q: Tensor
    log_ratio: Tensor
    room: Tensor

    def mean(self, weights: Tensor, values: Tensor) -> Tensor:
        """``sum(weights * values)`` per row, shape [N, 1]; overwrites ``room``."""
        return torch.mul(weights, values, out=self.room).sum(-1, keepdim=True)

    @cached_property
    def forward_kl(self) -> Tensor:
        """KL(q || p), shape [N, 1]: the metric and the usual loss, hence computed once."""
        return self.mean(self.q, self.log_ratio)


def divergence(spec: SpanLoss, pair: Pair, out: Tensor | None) -> Tensor:
    """The divergence that ``spec`` names, between ``pair`` as it is (no temperature).

    Args:
        spec: its ``divergence`` must not be None.
        pair: the distributions; only ``p`` and ``q`` survive.
        out: receives the gradient with respect to the student's logits, shape [N, M]; may be
            ``log_p``; None to skip it.

    Returns:
        Nats per token (TVD: a share), shape [N].
    """
    value_N1 = _CLOSED_FORMS[spec.divergence](pair, out, **spec.parameters)
    return value_N1.squeeze(-1)


def _forward_kl(pair: Pair, out: Tensor | None) -> Tensor:
    value = pair.forward_kl
    if out is not None:
        torch.sub(pair.p, pair.q, out=out)
    return value


def _reverse_kl(pair: Pair, out: Tensor | None) -> Tensor:
    negative = pair.mean(pair.p, pair.log_ratio)
    if out is not None:
        torch.sub(negative, pair.log_ratio, out=out).mul_(pair.p)
    return -negative


def _symmetric_kl(pair: Pair, out: Tensor | None) -> Tensor:
    forward = pair.forward_kl
    reverse = _reverse_kl(pair, out)
    if out is not None:
        out.add_(pair.p).sub_(pair.q).mul_(0.5)
    return 0.5 * (forward + reverse)


def _jsd(pair: Pair, out: Tensor | None, beta: float) -> Tensor:
    log_m = _log_mixture(pair, beta)
    student = pair.log_p.sub_(log_m)  # log p / m
    teacher = pair.log_ratio.add_(student)  # log q / m
    kl_student = pair.mean(pair.p, student)
    value = beta * pair.mean(pair.q, teacher) + (1 - beta) * kl_student
    if out is not None:
        torch.sub(student, kl_student, out=out).mul_(pair.p).mul_(1 - beta)
    return value


def _skew_kl(pair: Pair, out: Tensor | None, alpha: float) -> Tensor:
    log_m = _log_mixture(pair, alpha)
    log_q_over_m = pair.log_ratio.add_(pair.log_p).sub_(log_m)
    value = pair.mean(pair.q, log_q_over_m)
    if out is not None:
        share = torch.exp(log_q_over_m, out=pair.log_ratio).mul_(pair.p)  # p q / m
        torch.mul(pair.p, share.sum(-1, keepdim=True), out=out).sub_(share).mul_(1 - alpha)
    return value


def _tvd(pair: Pair, out: Tensor | None) -> Tensor:
    sign = torch.sub(pair.p, pair.q, out=pair.log_ratio)
    value = 0.5 * torch.abs(sign, out=pair.room).sum(-1, keepdim=True)
    if out is not None:
        sign.sign_()
        torch.sub(sign, pair.mean(pair.p, sign), out=out).mul_(pair.p).mul_(0.5)
    return value


def _log_mixture(pair: Pair, share: float) -> Tensor:
    """log(share q + (1 - share) p), in ``room``: gone at the next ``mean``."""
    mixture = torch.lerp(pair.p, pair.q, share, out=pair.room)
    return mixture.clamp_min_(torch.finfo(mixture.dtype).tiny).log_()


_CLOSED_FORMS: dict[str | None, Callable[..., Tensor]] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "symmetric_kl": _symmetric_kl,
    "jsd": _jsd,
    "skew_kl": _skew_kl,
    "tvd": _tvd,
}
