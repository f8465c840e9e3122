"""The order in which a training run reads its rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class StepOrder:
    """Which rows each optimizer step reads, the same on any number of ranks.

    One epoch is a seeded shuffle of all rows, cut into steps of ``global_batch`` rows (the last
    may be smaller). Within a step rows are sorted by length, so that micro-batches hold little
    padding; a step's gradient does not depend on it.

    Args:
        lengths: tokens per row.
        global_batch: rows per optimizer step over all ranks and micro-batches.
        seed: order of the shuffle.
    """

    def __init__(self, lengths: Sequence[int], global_batch: int, seed: int) -> None:
        if global_batch < 1:
            raise ValueError(f"a step reads at least one row; got {global_batch}")
        self.lengths = np.asarray(lengths)
        self.global_batch = global_batch
        self.seed = seed

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.lengths) // self.global_batch)

    def step_rows(self, step: int) -> list[int]:
        """Row indices of optimizer step ``step`` (0-based, over all epochs)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths))
        rows = order[within * self.global_batch : (within + 1) * self.global_batch]
        return sorted(rows.tolist(), key=lambda i: (self.lengths[i], i))
