"""The structured loss, plain and readable: the oracle that faster versions are proven against.

Shape legend: N supervised tokens, V vocabulary, K = 4 span kinds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sad_components.loss.functional import (
    DIVERGENCES,
    cross_entropy,
    entropy,
    forward_kl,
)
from sad_components.loss.hidden import HiddenRows
from sad_components.loss.spec import NUM_KINDS, LossSpec, SpanLoss
from sad_components.loss.teacher_rows import TopKRows, bucket_logits


@dataclass
class LossOutput:
    """What a structured loss gives back.

    Args:
        loss: scalar, already divided by the step's denominators: the sum over all micro-batches
            and ranks of a step is the step's loss.
        sums: detached float64 sums per kind, each shape [K], in nats: ``kl`` (forward KL at
            T = 1), ``ce``, ``entropy`` (teacher's), ``agree`` (the teacher's first choice is the
            student's), ``count``. Divide by ``count`` for means; sums over batches and ranks add
            up. A cached teacher's ``kl`` and ``entropy`` are those of its buckets, and are
            missing if it holds none at T = 1.
    """

    loss: Tensor
    sums: dict[str, Tensor]


class StructuredKDLoss(nn.Module):
    """Separate distillation losses for reasoning and action, summed (SAD, arXiv 2505.13820).

    ``L = sum_kind lambda_kind / N_kind * sum_t w_t [ T^2 D(student_t, teacher_t) + ce CE_t ]``

    with the denominators N counted over the whole optimizer step (``normalize: span``), or one
    joint denominator (``normalize: pooled``). The paper's public summaries give plain sums; the
    normalisation is ours (``docs/method.md``).

    Args:
        reason, act, context, observation: :class:`SpanLoss` or its fields as a mapping; None
            leaves the kind out. Default: forward KL on REASON and ACT.
        normalize: ``span`` or ``pooled``.
        branch: ``reason`` or ``own``; how a branch token is weighted.

    Raises:
        ValueError: a field that does not exist or a value out of range.

    Example:
        >>> loss = StructuredKDLoss(act={"weight": 2.0})
        >>> logits, kinds = torch.randn(2, 5), torch.tensor([1, 2])
        >>> out = loss(logits, logits, torch.tensor([3, 4]), kinds, counts=loss.spec.count(kinds))
        >>> bool(out.loss.abs() < 1e-6)
        True
    """

    def __init__(
        self,
        reason: SpanLoss | dict[str, Any] | None = SpanLoss(),  # noqa: B008 - frozen
        act: SpanLoss | dict[str, Any] | None = SpanLoss(),  # noqa: B008 - frozen
        context: SpanLoss | dict[str, Any] | None = None,
        observation: SpanLoss | dict[str, Any] | None = None,
        normalize: str = "span",
        branch: str = "reason",
    ) -> None:
        super().__init__()
        self.spec = LossSpec.parse(reason, act, context, observation, normalize, branch)

    def forward(
        self,
        student_NV: Tensor,
        teacher_NV: Tensor | TopKRows | None,
        targets_N: Tensor,
        span_ids_N: Tensor,
        branch_N: Tensor | None = None,
        *,
        counts: Tensor,
        weights_N: Tensor | None = None,
    ) -> LossOutput:
        """Loss of the given tokens.

        Args:
            student_NV: student logits, gradients flow into them.
            teacher_NV: teacher logits, no gradient, or its top-k rows; None when no kind has a
                divergence.
            targets_N: the trajectory's own tokens, int64.
            span_ids_N: ``SpanKind`` of each target.
            branch_N: bool, whether the target is a branch token.
            counts: ``spec.count`` summed over the whole optimizer step and all ranks, shape [K].
            weights_N: optional float weight per token; never enters a denominator, carries no
                gradient.

        Returns:
            :class:`LossOutput`; with no supervised token the loss is 0 and still in the graph.

        Raises:
            ValueError: vocabularies differ, or a divergence has no teacher, or a cached one not
                at its temperature.
        """
        if isinstance(teacher_NV, Tensor):
            check_shapes(student_NV.shape, teacher_NV.shape)
        self.check_teacher(teacher_NV)
        kinds_N = self.spec.kinds(span_ids_N, branch_N)
        scales = self.spec.scales(counts)
        total = student_NV.float().sum() * 0.0  # keeps the graph when nothing is supervised
        for kind, spec in self.spec.by_kind.items():
            rows = kinds_N == int(kind)
            if not rows.any():
                continue
            per_token = _span_loss(
                spec,
                student_NV[rows],
                None if teacher_NV is None else teacher_NV[rows],
                targets_N[rows],
            )
            if weights_N is not None:
                per_token = per_token * weights_N[rows].detach()
            total = total + scales[kind].to(per_token.dtype) * per_token.sum()
        with torch.no_grad():
            chosen = self.spec.supervised(span_ids_N, branch_N)
            sums = span_sums(student_NV, teacher_NV, targets_N, kinds_N, chosen)
        return LossOutput(total, sums)

    def from_hidden(
        self,
        student: HiddenRows,
        teacher: HiddenRows | TopKRows | None,
        targets_N: Tensor,
        span_ids_N: Tensor,
        branch_N: Tensor | None = None,
        *,
        counts: Tensor,
        weights_N: Tensor | None = None,
    ) -> LossOutput:
        """The same loss from hidden states: what recipes call. Here all logits are made at once.

        Args:
            student: the student's rows; gradients flow into its hidden states and head.
            teacher: the teacher's rows, live or cached, or None.
            targets_N, span_ids_N, branch_N, counts, weights_N: as in :meth:`forward`.
        """
        with torch.no_grad():
            teacher_NV = teacher.logits() if isinstance(teacher, HiddenRows) else teacher
        return self(
            student.logits(),
            teacher_NV,
            targets_N,
            span_ids_N,
            branch_N,
            counts=counts,
            weights_N=weights_N,
        )

    def check_teacher(self, teacher: object | None) -> None:
        """Raises ``ValueError`` if a divergence has no teacher."""
        if teacher is None and self.spec.needs_teacher:
            raise ValueError(
                "a divergence compares with a teacher, but there is none; give a teacher, or set "
                "divergence: null and ce: 1.0 (imitation)"
            )


def check_shapes(student: torch.Size, teacher: torch.Size) -> None:
    """Raises ``ValueError`` unless both logits have one shape."""
    if student != teacher:
        raise ValueError(
            f"student and teacher logits must have one shape; got {tuple(student)} "
            f"and {tuple(teacher)}: cut both to the shared vocabulary first"
        )


def _span_loss(
    spec: SpanLoss, student_NV: Tensor, teacher_NV: Tensor | TopKRows | None, targets_N: Tensor
) -> Tensor:
    """Unweighted loss per token, shape [N], nats."""
    parts = []
    if spec.divergence is not None and teacher_NV is not None:
        function, t = DIVERGENCES[spec.divergence][0], spec.temperature
        parts.append(t**2 * function(*_compared(student_NV, teacher_NV, t), **spec.parameters))
    if spec.ce:
        parts.append(spec.ce * cross_entropy(student_NV, targets_N))
    return torch.stack(parts).sum(0) if parts else student_NV.float().sum(-1) * 0.0


def _over(logits_NV: Tensor, temperature: float) -> Tensor:
    wide = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    return wide / temperature


def _compared(
    student_NV: Tensor, teacher_NV: Tensor | TopKRows, temperature: float
) -> tuple[Tensor, Tensor]:
    """Logits of student and teacher at a temperature: over the vocabulary, or over buckets."""
    student_NV = _over(student_NV, temperature)
    if isinstance(teacher_NV, TopKRows):
        return bucket_logits(student_NV, teacher_NV.ids_NK), teacher_NV.at(temperature)
    return student_NV, _over(teacher_NV, temperature)


def span_sums(
    student_NV: Tensor,
    teacher_NV: Tensor | TopKRows | None,
    targets_N: Tensor,
    kinds_N: Tensor,
    chosen_N: Tensor,
) -> dict[str, Tensor]:
    """Metric sums per kind (see :class:`LossOutput`), float64 shape [K] each, without gradient."""
    per_token = token_figures(student_NV, teacher_NV, targets_N)
    kinds = kinds_N[chosen_N].long()
    return {name: kind_sums(value[chosen_N], kinds) for name, value in per_token.items()}


def token_figures(
    student_NV: Tensor, teacher_NV: Tensor | TopKRows | None, targets_N: Tensor
) -> dict[str, Tensor]:
    """What :class:`LossOutput` sums, for each token, shape [N] each."""
    per_token = {
        "ce": cross_entropy(student_NV, targets_N),
        "count": torch.ones_like(targets_N, dtype=torch.float64),
    }
    if teacher_NV is not None:
        per_token["agree"] = _agrees(student_NV, teacher_NV)
        if not isinstance(teacher_NV, TopKRows) or 1.0 in teacher_NV.log_masses:
            student, teacher = _compared(student_NV, teacher_NV, 1.0)
            per_token["kl"] = forward_kl(student, teacher)
            per_token["entropy"] = entropy(teacher)
    return per_token


def _agrees(student_NV: Tensor, teacher_NV: Tensor | TopKRows) -> Tensor:
    """1 where no token is likelier to the student than the teacher's first choice, shape [N]."""
    if isinstance(teacher_NV, TopKRows):
        first_N1 = teacher_NV.ids_NK[:, :1]
    else:
        first_N1 = teacher_NV.argmax(-1, keepdim=True)
    chosen_N1 = student_NV.gather(-1, first_N1)
    return (chosen_N1 >= student_NV.amax(-1, keepdim=True)).squeeze(-1).double()


def kind_sums(values_N: Tensor, kinds_N: Tensor) -> Tensor:
    """Sum of ``values_N`` per span kind, float64 shape [K]."""
    out = torch.zeros(NUM_KINDS, dtype=torch.float64, device=values_N.device)
    return out.index_add_(0, kinds_N, values_N.double())
