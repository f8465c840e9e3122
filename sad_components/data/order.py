"""The order in which a training run reads its rows: shuffled epochs, of one source or a mixture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

#: Told apart from the plain shuffle, whose seed is ``[seed, epoch]``.
_WALK, _MIXTURE = 1, 2


class StepOrder:
    """Which rows each optimizer step reads, the same on any number of ranks.

    One epoch is a seeded shuffle of all rows, cut into steps of ``global_batch`` rows (the last
    may be smaller). Within a step rows are sorted by length, so that micro-batches hold little
    padding; a step's gradient does not depend on it.

    With ``weights``, an epoch still has as many rows as there are, but each source gives its share
    of them (largest remainders are rounded up), shuffled among the others'. A source is walked in
    a shuffle of its own that goes on from epoch to epoch: none of its rows comes again before all
    of them came.

    Args:
        lengths: tokens per row.
        global_batch: rows per optimizer step over all ranks and micro-batches.
        seed: order of the shuffle.
        groups: source of each row, 0-based, shape [rows]; None: one source.
        weights: share of an epoch's rows per source, in any unit; None: every row once, whatever
            its source.

    Raises:
        ValueError: ``global_batch`` is below 1; ``weights`` come without ``groups``; they do not
            fit to the rows or to each other; or a weight is so small that its source would never
            be read.

    Example:
        >>> order = StepOrder([9] * 6, 3, seed=0, groups=[0, 0, 0, 0, 0, 1], weights=[2, 1])
        >>> sorted(int(order.groups[i]) for step in (0, 1) for i in order.step_rows(step))
        [0, 0, 0, 0, 1, 1]
    """

    def __init__(
        self,
        lengths: Sequence[int],
        global_batch: int,
        seed: int,
        *,
        groups: Sequence[int] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        if global_batch < 1:
            raise ValueError(f"a step reads at least one row; got {global_batch}")
        if groups is None and weights is not None:
            raise ValueError("weights are of sources: they need the source of each row (groups)")
        self.lengths = np.asarray(lengths)
        self.global_batch = global_batch
        self.seed = seed
        self.weights = weights
        self.groups: np.ndarray | None = None
        self.shares: list[int] | None = None
        if groups is not None and weights is not None:
            self.groups = np.asarray(groups)
            self.shares = _shares(self.groups, [float(w) for w in weights], len(self.lengths))
        # a step and the next one may lie in two epochs
        self._epoch = lru_cache(maxsize=2)(self._shuffled if self.shares is None else self._mixed)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.lengths) // self.global_batch)

    def step_rows(self, step: int) -> list[int]:
        """Row indices of optimizer step ``step`` (0-based, over all epochs), by length."""
        epoch, within = divmod(step, self.steps_per_epoch)
        rows = self._epoch(epoch)[within * self.global_batch : (within + 1) * self.global_batch]
        return self.by_length(rows.tolist())

    def by_length(self, rows: Sequence[int]) -> list[int]:
        """``rows``, short ones first."""
        return sorted(rows, key=lambda i: (self.lengths[i], i))

    def settings(self) -> dict[str, Any]:
        """What decides which rows a step reads, as plain JSON: equal settings, equal rows."""
        one = {
            "seed": self.seed,
            "rows": len(self.lengths),
            "rows_per_step": self.global_batch,
        }
        return one if self.shares is None else {**one, "rows_per_source": self.shares}

    def metrics(self, step: int) -> dict[str, float]:
        """What to log of the order at a step: nothing, where every step reads alike."""
        return {}

    def describe(self) -> list[str]:
        """For people: what is particular about this order."""
        return []

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths))

    def _mixed(self, epoch: int) -> np.ndarray:
        shares = enumerate(self.shares or ())
        walks = [self._walk(source, epoch * share, share) for source, share in shares]
        mixture = np.random.default_rng([self.seed, epoch, _MIXTURE])
        return mixture.permutation(np.concatenate(walks))

    def _walk(self, source: int, start: int, count: int) -> np.ndarray:
        """Rows ``start`` to ``start + count`` of a source's endless walk."""
        members = np.flatnonzero(self.groups == source)
        first, last = start // len(members), (start + count - 1) // len(members)
        rounds = [
            np.random.default_rng([self.seed, number, source, _WALK]).permutation(members)
            for number in range(first, last + 1)
        ]
        skipped = start - first * len(members)
        return np.concatenate(rounds)[skipped : skipped + count]


def largest_remainder(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers in the ratio of ``weights`` that add up to ``total``.

    Each is its exact share rounded down; what is missing goes to the largest remainders, one
    each (to the first ones where they are equal).
    """
    exact = np.asarray(weights, dtype=np.float64) / np.sum(weights) * total
    whole = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(-np.round(exact - whole, 9), kind="stable")
    whole[order[: total - int(whole.sum())]] += 1
    return whole.tolist()


def _shares(groups: np.ndarray, weights: list[float], rows: int) -> list[int]:
    """Rows of an epoch per source, once ``groups`` and ``weights`` are found to fit."""
    if groups.shape != (rows,) or not np.issubdtype(groups.dtype, np.integer):
        raise ValueError(
            f"groups names the source of each of the {rows} rows by an integer; got "
            f"{groups.dtype} of shape {groups.shape}"
        )
    if bad := [weight for weight in weights if not 0 < weight < float("inf")]:
        raise ValueError(
            f"a source's weight is a number above 0; got {bad[0]}: leave out a source that is "
            "not to be read"
        )
    found = sorted(set(groups.tolist()))
    if found != list(range(len(weights))):
        raise ValueError(
            f"{len(weights)} weights need rows of the sources 0 to {len(weights) - 1}, each of "
            f"them; got rows of {found}"
        )
    shares = largest_remainder(weights, rows)
    if 0 in shares:
        weight = weights[shares.index(0)]
        raise ValueError(
            f"every source gives at least one of an epoch's {rows} rows; a weight of {weight:g} "
            f"of {sum(weights):g} gives none: raise it, or leave that source out"
        )
    return shares
