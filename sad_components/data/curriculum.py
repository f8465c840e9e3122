"""Easy rows first: how complex a row is, how fast the others join, and the order that makes.

The complexity is the paper's (SAD, arXiv 2505.13820; known from its abstract and reviews), the
pacing ours (``docs/recipes.md``, "Order and curriculum").
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from sad_components.data.order import StepOrder
from sad_components.spans import SpanKind

if TYPE_CHECKING:
    from sad_components.data.store import RowTable
    from sad_components.data.transform import TokenizedTrajectory

#: Told apart from the seeds of plain shuffles and mixtures.
_DRAWS = 3


Numbers = TypeVar("Numbers", float, np.ndarray)


def complexity(
    reason: Numbers,
    act: Numbers,
    entropy: Numbers,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 0.0,
) -> Numbers:
    """``alpha * reason + beta * act + gamma * entropy``.

    Args:
        reason: REASON tokens.
        act: ACT tokens.
        entropy: the teacher's mean entropy on the supervised tokens, nats per token.
        alpha: weight of a REASON token.
        beta: weight of an ACT token.
        gamma: weight of a nat; beside token counts, of the order of 100.
    """
    return alpha * reason + beta * act + gamma * entropy


@dataclass(frozen=True)
class Curriculum:
    """What makes a row complex, and when it joins: a config's ``curriculum``.

    Args:
        alpha, beta, gamma: see :func:`complexity`; finite and not negative.
        start: share of the rows that is in from the first step, the easiest; in (0, 1].
        full_at: share of the training's steps after which all rows are in; in [0, 1].
        entropy: a JSON file, trajectory id -> teacher entropy in nats per token (the
            ``entropy.json`` of a teacher cache); None: what the teacher cache or the rows know.

    Raises:
        ValueError: a number is out of its range, or all weights are 0.
    """

    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 0.0
    start: float = 0.3
    full_at: float = 0.5
    entropy: str | None = None

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "gamma"):
            self._check(name, 0 <= self._number(name) < math.inf, ">= 0")
        if not self.alpha + self.beta + self.gamma > 0:
            raise ValueError("curriculum: one of alpha, beta and gamma is above 0; all are 0")
        self._check("start", 0 < self._number("start") <= 1, "above 0 and at most 1")
        self._check("full_at", 0 <= self._number("full_at") <= 1, "from 0 to 1")

    def _number(self, name: str) -> float:
        value = getattr(self, name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return value if is_number else math.nan

    def _check(self, name: str, fits: bool, range_: str) -> None:
        if not fits:
            raise ValueError(f"curriculum.{name} is a number {range_}; got {getattr(self, name)!r}")

    def complexities(
        self,
        table: RowTable,
        rows: Sequence[TokenizedTrajectory],
        from_teacher: Sequence[float | None] | None = None,
    ) -> np.ndarray:
        """Complexity of each row, float64, shape [R].

        Args:
            table: tokens per kind, and the entropy from each row's ``meta.teacher_entropy``.
            rows: the same rows; read only for their ids.
            from_teacher: the teacher's entropy on each row, None where it knows none. It goes
                before a row's own; the file ``entropy`` goes before both.

        Raises:
            ValueError: ``gamma`` is not 0 and the entropy of some rows is not known.
        """
        reason, act = (
            table.counts[:, kind].astype(np.float64) for kind in (SpanKind.REASON, SpanKind.ACT)
        )
        entropy = np.zeros(len(reason))
        if self.gamma:
            entropy = self._entropies(table.entropy, rows, from_teacher)
        weights = {"alpha": self.alpha, "beta": self.beta, "gamma": self.gamma}
        return complexity(reason, act, entropy, **weights)

    def _entropies(
        self,
        own: np.ndarray,
        rows: Sequence[TokenizedTrajectory],
        from_teacher: Sequence[float | None] | None,
    ) -> np.ndarray:
        known = own
        if self.entropy is not None:
            by_id = read_entropies(self.entropy)
            known = np.array([by_id.get(row.id) for row in rows], dtype=np.float64)
        elif from_teacher is not None:
            said = np.array(from_teacher, dtype=np.float64)  # None becomes NaN
            known = np.where(np.isnan(said), own, said)
        missing = np.flatnonzero(~np.isfinite(known)).tolist()
        if missing:
            shown = ", ".join(rows[i].id for i in missing[:5]) + (
                ", .." if len(missing) > 5 else ""
            )
            raise ValueError(
                f"curriculum.gamma {self.gamma:g} needs the teacher's entropy of every row, in "
                f"nats per token; {len(missing)} of {len(rows)} rows have none ({shown}): run "
                "recipes/cache_teacher.py on this dataset and name its cache as teacher or its "
                "entropy.json as curriculum.entropy, or set gamma: 0"
            )
        return known


class CurriculumOrder(StepOrder):
    """Rows by a :class:`Curriculum`: a pool that begins with the easiest and grows to all of them.

    With n rows, T steps and F = round(full_at * T), but at most T - 1, the pool at step s holds
    the round(n * min(1, start + (1 - start) * s / F)) easiest rows, and at least one step's rows.
    It is read in passes: each row of the pool once, in random order. A row that joins while a pass
    runs is among the rows that this pass has still to read; so no row is lost, and with one epoch
    each is read once. When all rows are in, passes are the usual shuffles.

    A step reads as many rows as it does without, and of a mixture as many of each source: every
    source has a pool of its own, with the same share of its rows, so that the weights hold from the
    first step.

    Everything is a function of the arguments and the step; nothing else has to be stored.

    Args:
        plain: the order without a curriculum: rows, rows per step, seed, sources.
        complexities: of each row; rows of equal complexity come as in the data.
        curriculum: the pace.
        total_steps: optimizer steps of the whole training.

    Raises:
        ValueError: there are not as many complexities as rows.
    """

    def __init__(
        self,
        plain: StepOrder,
        complexities: Sequence[float] | np.ndarray,
        curriculum: Curriculum,
        total_steps: int,
    ) -> None:
        sources = {"groups": plain.groups, "weights": plain.weights}
        super().__init__(plain.lengths, plain.global_batch, plain.seed, **sources)
        self.complexities = np.asarray(complexities, dtype=np.float64)
        if self.complexities.shape != self.lengths.shape:
            raise ValueError(
                f"every row has one complexity; got {len(self.complexities)} for "
                f"{len(self.lengths)} rows"
            )
        self.curriculum = curriculum
        self.total_steps = total_steps
        #: First step at which all rows are in.
        self.full_step = max(min(round(curriculum.full_at * total_steps), total_steps - 1), 0)
        self._sources = np.zeros(len(self.lengths), int) if self.groups is None else self.groups
        easiest = np.argsort(self.complexities, kind="stable")
        self._pools = [
            _Pool(easiest[self._sources[easiest] == source], [self.seed, source, _DRAWS])
            for source in range(int(self._sources.max()) + 1)
        ]
        self._steps: list[list[int]] = []
        self._pool_rows: list[int] = []

    def step_rows(self, step: int) -> list[int]:
        while len(self._steps) <= step:
            self._advance()
        return self._steps[step]

    def pool_rows(self, step: int) -> int:
        """Rows that are in the pool at ``step``."""
        self.step_rows(step)
        return self._pool_rows[step]

    def metrics(self, step: int) -> dict[str, float]:
        """``pool``: share of the rows that may be read at a step."""
        return {"pool": self.pool_rows(step) / len(self.lengths)}

    def settings(self) -> dict[str, Any]:
        exact = np.ascontiguousarray(self.complexities, dtype="<f8").tobytes()
        pace = {k: v for k, v in asdict(self.curriculum).items() if k != "entropy"}
        return {
            **super().settings(),
            "curriculum": pace,
            "steps": self.total_steps,
            "complexities": hashlib.blake2b(exact, digest_size=8).hexdigest(),
        }

    def describe(self) -> list[str]:
        rows = len(self.lengths)
        low, middle, high = np.quantile(self.complexities, (0.0, 0.5, 1.0))
        return [
            f"curriculum: complexity {low:.4g} (easiest), {middle:.4g} (median), {high:.4g} "
            f"(hardest); {self.pool_rows(0)} of {rows} rows at the start, all of them from step "
            f"{self.full_step + 1} of {self.total_steps} on"
        ]

    def _share(self, step: int) -> float:
        """How much of the rows is in at a step, by the pace alone."""
        if step >= self.full_step:
            return 1.0
        start = self.curriculum.start
        return start + (1 - start) * step / self.full_step

    def _advance(self) -> None:
        step = len(self._steps)
        wanted = np.bincount(self._sources[super().step_rows(step)], minlength=len(self._pools))
        rows: list[int] = []
        for pool, count in zip(self._pools, wanted.tolist()):
            pool.grow(max(round(len(pool.rows) * self._share(step)), count))
            rows += pool.draw(count)
        self._steps.append(self.by_length(rows))
        self._pool_rows.append(sum(pool.size for pool in self._pools))


class _Pool:
    """Rows of one source that are in so far, read pass by pass.

    Args:
        rows: all rows of the source, easiest first.
        seed: of the draws.
    """

    def __init__(self, rows: np.ndarray, seed: Sequence[int]) -> None:
        self.rows: list[int] = rows.tolist()
        self.size = 0
        self._unread: list[int] = []
        self._random = np.random.default_rng(seed)

    def grow(self, size: int) -> None:
        """Lets rows in until ``size`` of them (or all) are; rows never leave."""
        size = max(self.size, min(size, len(self.rows)))
        self._unread += self.rows[self.size : size]
        self.size = size

    def draw(self, count: int) -> list[int]:
        """The next ``count`` rows; one comes twice only if the pool holds fewer."""
        drawn: list[int] = []
        waiting: list[int] = []  # of a pass that began here: what this step holds already
        for place in self._random.random(count):
            if not self._unread:
                self._unread, waiting = waiting, []
            if not self._unread:
                held = set(drawn) if len(drawn) < self.size else set()
                waiting = [row for row in self.rows[: self.size] if row in held]
                self._unread = [row for row in self.rows[: self.size] if row not in held]
            index = int(place * len(self._unread))
            last = self._unread.pop()
            if index < len(self._unread):
                last, self._unread[index] = self._unread[index], last
            drawn.append(last)
        self._unread += waiting
        return drawn


def read_entropies(path: str) -> dict[str, float]:
    """Trajectory id -> teacher entropy, from a teacher cache's ``entropy.json``.

    Raises:
        ValueError: no such file, or it holds something else.
    """
    file = Path(path).expanduser()
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"curriculum.entropy is a teacher cache's entropy.json; cannot read {file}: {error}"
        ) from error
    if not isinstance(found, dict) or not all(map(_is_finite, found.values())):
        raise ValueError(
            f"curriculum.entropy is a JSON object, trajectory id -> nats per token; {file} is not"
        )
    return found


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)
