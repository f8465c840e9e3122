"""Per-token divergences between two next-token distributions: the plain reference.

Shape legend: N supervised tokens, V vocabulary.

All take logits in any float dtype, compute in fp32 (fp64 stays fp64) and return nats per token,
shape [N]. Gradients reach the student's logits only. Every KL is a true one: 0 for identical
distributions, never negative. Temperatures are the caller's business (``StructuredKDLoss``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import log_softmax


def _log_probs(logits_NV: Tensor) -> Tensor:
    wide = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    return log_softmax(wide, dim=-1)


def _kl(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """KL(p || q) per row; a term whose p is 0 counts 0."""
    p_NV = log_p_NV.exp()
    return torch.where(p_NV > 0, p_NV * (log_p_NV - log_q_NV), 0.0).sum(-1)


def forward_kl(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """KL(teacher || student) per token, in nats: covers all the teacher's modes.

    ``sum_v p_T (log p_T - log p_S)`` (SAD, arXiv 2505.13820). torchtune's ``ForwardKLLoss``
    leaves out the teacher's entropy: same gradient, another value.

    Args:
        student_NV: student logits.
        teacher_NV: teacher logits.

    Returns:
        Shape [N], nats.

    Example:
        >>> logits = torch.randn(3, 7)
        >>> bool(forward_kl(logits, logits).abs().max() < 1e-6)
        True
    """
    return _kl(_log_probs(teacher_NV).detach(), _log_probs(student_NV))


def reverse_kl(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """KL(student || teacher) per token, in nats: seeks one of the teacher's modes (MiniLLM)."""
    return _kl(_log_probs(student_NV), _log_probs(teacher_NV).detach())


def symmetric_kl(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """Mean of forward and reverse KL per token, in nats."""
    return 0.5 * (forward_kl(student_NV, teacher_NV) + reverse_kl(student_NV, teacher_NV))


def jsd(student_NV: Tensor, teacher_NV: Tensor, beta: float = 0.5) -> Tensor:
    """Generalised Jensen-Shannon divergence per token, in nats (GKD, arXiv 2306.13649).

    ``beta KL(p_T || m) + (1 - beta) KL(p_S || m)`` with ``m = beta p_T + (1 - beta) p_S``.

    Args:
        student_NV: student logits.
        teacher_NV: teacher logits.
        beta: the teacher's share of the mixture, in (0, 1).
    """
    log_t, log_s = _log_probs(teacher_NV).detach(), _log_probs(student_NV)
    log_m = _log_mix(log_t, log_s, beta)
    return beta * _kl(log_t, log_m) + (1 - beta) * _kl(log_s, log_m)


def skew_kl(student_NV: Tensor, teacher_NV: Tensor, alpha: float = 0.1) -> Tensor:
    """KL(p_T || alpha p_T + (1 - alpha) p_S) per token, in nats (DistiLLM, arXiv 2402.03898).

    Args:
        student_NV: student logits.
        teacher_NV: teacher logits.
        alpha: the teacher's share of the mixture, in (0, 1).
    """
    log_t, log_s = _log_probs(teacher_NV).detach(), _log_probs(student_NV)
    return _kl(log_t, _log_mix(log_t, log_s, alpha))


def tvd(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """Total variation distance per token, in [0, 1]: ``0.5 sum_v |p_T - p_S|``."""
    p_t, p_s = _log_probs(teacher_NV).detach().exp(), _log_probs(student_NV).exp()
    return 0.5 * (p_t - p_s).abs().sum(-1)


def entropy(logits_NV: Tensor) -> Tensor:
    """Entropy of each row's distribution, in nats."""
    log_p = _log_probs(logits_NV)
    p = log_p.exp()
    return -torch.where(p > 0, p * log_p, 0.0).sum(-1)


def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """``-log p(target)`` per token, in nats.

    Args:
        logits_NV: logits.
        targets_N: token ids, int64.
    """
    return -_log_probs(logits_NV).gather(-1, targets_N[:, None]).squeeze(-1)


def _log_mix(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """log(share p + (1 - share) q)."""
    weights = torch.tensor([share, 1 - share], dtype=log_p.dtype, device=log_p.device).log()
    return torch.logaddexp(log_p + weights[0], log_q + weights[1])


#: Divergences by the name that configs use, with the name of their parameter, if they have one.
DIVERGENCES: dict[str, tuple[Callable[..., Tensor], str | None]] = {
    "forward_kl": (forward_kl, None),
    "reverse_kl": (reverse_kl, None),
    "symmetric_kl": (symmetric_kl, None),
    "jsd": (jsd, "beta"),
    "skew_kl": (skew_kl, "alpha"),
    "tvd": (tvd, None),
}
