"""What a structured loss is made of: one specification per span kind, and the counts.

Shape legend: N supervised tokens, K = 4 span kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from sad_components.loss.functional import DIVERGENCES
from sad_components.spans import SpanKind

NUM_KINDS = len(SpanKind)
_OPEN_UNIT = {"beta", "alpha"}


@dataclass(frozen=True)
class SpanLoss:
    """How the tokens of one span kind are learnt.

    ``weight * (T^2 * divergence(student / T, teacher / T) + ce * cross_entropy(target))``

    Args:
        divergence: name in ``DIVERGENCES``; None for cross-entropy alone.
        weight: lambda of this kind, >= 0.
        temperature: T > 0 that both logits are divided by; the divergence is scaled by T^2.
        ce: weight of the cross-entropy on the trajectory's own tokens (at T = 1), >= 0.
        beta: the teacher's share in ``jsd``, in (0, 1).
        alpha: the teacher's share in ``skew_kl``, in (0, 1).
    """

    divergence: str | None = "forward_kl"
    weight: float = 1.0
    temperature: float = 1.0
    ce: float = 0.0
    beta: float = 0.5
    alpha: float = 0.1

    def __post_init__(self) -> None:
        if self.divergence is not None and self.divergence not in DIVERGENCES:
            names = ", ".join(DIVERGENCES)
            raise ValueError(f"divergence is one of {names}, or null; got {self.divergence!r}")
        for name in ("weight", "ce"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0; got {getattr(self, name)!r}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0; got {self.temperature!r}")
        for name in _OPEN_UNIT:
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must lie strictly between 0 and 1; got {getattr(self, name)!r} "
                    "(for the limits use forward_kl or reverse_kl)"
                )
        if self.divergence is None and self.ce == 0 and self.weight > 0:
            raise ValueError(
                "a span kind with neither a divergence nor ce learns nothing; set one, or leave "
                "the kind out of the loss"
            )

    @property
    def parameters(self) -> dict[str, float]:
        """Keyword arguments of the divergence."""
        name = DIVERGENCES[self.divergence][1] if self.divergence else None
        return {name: getattr(self, name)} if name else {}

    @classmethod
    def parse(cls, value: Any, kind: str) -> SpanLoss | None:
        """From a config node: a mapping of fields, an instance, or None.

        Raises:
            ValueError: an unknown field, or a value out of its range; the span kind is named.
        """
        if value is None or isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"loss.{kind} is a mapping of fields; got {value!r}")
        known = {f.name for f in fields(cls)}
        unknown = set(value) - known
        if unknown:
            near = get_close_matches(str(min(unknown, key=str)), known, n=1, cutoff=0.5)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"loss.{kind} has no field {', '.join(sorted(map(str, unknown)))}{hint}; "
                f"fields: {', '.join(sorted(known))}"
            )
        try:
            return cls(**value)
        except ValueError as error:
            raise ValueError(f"loss.{kind}: {error}") from None


@dataclass(frozen=True)
class LossSpec:
    """The whole specification, shared by the reference loss and the fast ones.

    Args:
        reason, act, context, observation: per kind; None is not supervised.
        normalize: ``span`` (each kind by its own count) or ``pooled`` (all by the joint count).
        branch: ``reason`` counts a branch token as REASON whatever it turned out to be; ``own``
            leaves it its kind. See ``docs/method.md``, "The branch token".
    """

    reason: SpanLoss | None = None
    act: SpanLoss | None = None
    context: SpanLoss | None = None
    observation: SpanLoss | None = None
    normalize: str = "span"
    branch: str = "reason"

    def __post_init__(self) -> None:
        if self.normalize not in ("span", "pooled"):
            raise ValueError(f"normalize is 'span' or 'pooled'; got {self.normalize!r}")
        if self.branch not in ("reason", "own"):
            raise ValueError(f"branch is 'reason' or 'own'; got {self.branch!r}")
        if not self.by_kind:
            raise ValueError("a loss supervises at least one span kind; got none")

    @classmethod
    def parse(
        cls, reason: Any, act: Any, context: Any, observation: Any, normalize: str, branch: str
    ) -> LossSpec:
        """From config nodes (see :meth:`SpanLoss.parse`)."""
        kinds = {"reason": reason, "act": act, "context": context, "observation": observation}
        parsed = {name: SpanLoss.parse(value, name) for name, value in kinds.items()}
        return cls(**parsed, normalize=normalize, branch=branch)

    @property
    def by_kind(self) -> dict[SpanKind, SpanLoss]:
        """The supervised kinds and their losses."""
        every = {k: getattr(self, k.label) for k in SpanKind}
        return {k: spec for k, spec in every.items() if spec is not None}

    @property
    def needs_teacher(self) -> bool:
        """Whether some kind has a divergence."""
        return any(s.divergence is not None and s.weight > 0 for s in self.by_kind.values())

    def kinds(self, span_ids: Tensor, branch: Tensor | None) -> Tensor:
        """The kind each token is learnt as, any shape: its own, or REASON at a branch."""
        if self.branch == "own" or branch is None or self.reason is None:
            return span_ids
        agent_act = span_ids == int(SpanKind.ACT)  # Dynamo compares enums wrongly
        return torch.where(branch.bool() & agent_act, int(SpanKind.REASON), span_ids)

    def supervised(self, span_ids: Tensor, branch: Tensor | None = None) -> Tensor:
        """Bool, any shape: which tokens this loss reads."""
        kinds = self.kinds(span_ids, branch)
        chosen = torch.zeros_like(kinds, dtype=torch.bool)
        for kind in self.by_kind:
            chosen |= kinds == int(kind)
        return chosen

    def count(self, span_ids: Tensor, branch: Tensor | None = None) -> Tensor:
        """Supervised tokens per kind, float64 shape [K]; sums over batches and ranks add up."""
        chosen = self.kinds(span_ids, branch)[self.supervised(span_ids, branch)]
        return torch.bincount(chosen.long().flatten(), minlength=NUM_KINDS).double()

    def scales(self, counts: Tensor) -> Tensor:
        """``lambda / N`` of each kind, float64 shape [K]; 0 where a kind is absent.

        Args:
            counts: tokens per kind over the whole optimizer step, all ranks, shape [K].
        """
        scale = torch.zeros(NUM_KINDS, dtype=torch.float64, device=counts.device)
        pooled = torch.stack([counts[kind] for kind in self.by_kind]).sum()
        for kind, spec in self.by_kind.items():
            denominator = pooled if self.normalize == "pooled" else counts[kind]
            scale[kind] = spec.weight / denominator.clamp(min=1)
        return scale
