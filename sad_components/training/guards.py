"""Losses and gradients that are not finite: the run stops, or leaves the step out and counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sad_components.data import Batching
from sad_components.data.transform import TokenizedTrajectory
from sad_components.training.config import ConfigError
from sad_components.training.run_folder import RunFolder

POLICIES = ("stop", "skip")
#: Steps in a row that may be left out: more, and it is the weights or the data.
MOST_IN_A_ROW = 10


class NonfiniteError(ValueError):
    """A step whose loss or gradient is NaN or infinite."""


class NonfiniteGuard:
    """Lets through the steps whose loss and gradient norm are finite.

    Ranks that check the same figures decide alike, without a word between them.

    Args:
        policy: ``stop`` at the first other step, or ``skip`` it.
        folder: where rows of such steps are written down; None on all ranks but the main one.

    Attributes:
        skipped: steps left out so far.

    Raises:
        ConfigError: an unknown policy.
    """

    def __init__(self, policy: str, folder: RunFolder | None) -> None:
        if policy not in POLICIES:
            raise ConfigError(f"nonfinite is one of {', '.join(POLICIES)}; got {policy!r}")
        self.policy, self._folder = policy, folder
        self.skipped = self._in_a_row = 0

    def passes(
        self, step: int, metrics: Mapping[str, float], rows: Callable[[], list[dict[str, Any]]]
    ) -> bool:
        """Whether the optimizer may use a step's gradient.

        Args:
            step: 1-based.
            metrics: the step's figures over all ranks; ``loss`` and ``grad_norm`` decide.
            rows: tells which rows the step read; asked only where needed.

        Raises:
            NonfiniteError: it may not, and the policy is to stop; or too many in a row were not.
        """
        decisive = ("loss", "grad_norm")
        if all(math.isfinite(metrics[name]) for name in decisive):
            self._in_a_row = 0
            return True
        self.skipped += 1
        self._in_a_row += 1
        found = " and ".join(f"{name} {metrics[name]}" for name in decisive)
        where = self._write(step, metrics, rows)
        if self.policy == "stop":
            raise NonfiniteError(
                f"loss and gradient must be finite, but step {step} has {found}; {where}. Lower "
                "the learning rate, look at those rows, or set nonfinite: skip"
            )
        if self._in_a_row > MOST_IN_A_ROW:
            raise NonfiniteError(
                f"at most {MOST_IN_A_ROW} steps in a row may be left out, but step {step} is the "
                f"next one with {found}; {where}. Resume from a checkpoint with a lower learning "
                "rate"
            )
        return False

    def metrics(self) -> dict[str, float]:
        """What to log of every step."""
        return {"skipped_steps": self.skipped} if self.policy == "skip" else {}

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on counting from a checkpoint."""
        self.skipped, self._in_a_row = state["skipped"], state["in_a_row"]

    def _write(
        self, step: int, metrics: Mapping[str, float], rows: Callable[[], list[dict[str, Any]]]
    ) -> str:
        name = f"nonfinite_step_{step}.json"
        if self._folder is not None:
            figures = {k: v if math.isfinite(v) else str(v) for k, v in metrics.items()}
            content = {"step": step, "policy": self.policy, "metrics": figures, "ranks": rows()}
            self._folder.write_json(name, content)
        return f"its rows are in {name} in the output folder"


def rows_by_rank(
    rows: Sequence[int], data: Sequence[TokenizedTrajectory], batching: Batching, world: int
) -> list[dict[str, Any]]:
    """Which rows every rank's micro-batches of a step hold, as plain JSON.

    Args:
        rows: row indices of the step, by length.
        data: all rows.
        batching: cuts them into micro-batches.
        world: ranks that share the step.
    """
    return [
        {
            "rank": rank,
            "micro_batches": [
                [{"row": row, "id": data[row].id} for packed in batch for row in packed]
                for batch in batching.micro_batches(rows, rank, world)
            ],
        }
        for rank in range(world)
    ]


def clip_gradients_(parameters: Sequence[nn.Parameter], limit: float | None) -> Tensor:
    """Scales gradients down to a norm of at most ``limit``, in place.

    Args:
        parameters: those without a gradient count as 0.
        limit: None to leave them as they are.

    Returns:
        The norm before, a scalar on the gradients' device; NaN or infinite if a gradient is.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
