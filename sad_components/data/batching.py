"""How one process's rows of an optimizer step become micro-batches.

The split changes neither the loss nor its gradient: the recipe divides by the whole step's token
counts. It changes memory and speed: how much is padding, and how much runs at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

#: Rows (by index) that stand one behind another in one sequence.
Packed = list[int]


@dataclass(frozen=True)
class Batching:
    """Cuts rows into micro-batches, each a list of sequences, each a list of rows.

    Args:
        lengths: tokens per row of the data set.
        batch_size: sequences per micro-batch, where ``max_tokens`` sets no limit.
        max_tokens: positions per micro-batch, padding included (sequences times the longest);
            None for no limit. A longer row is a micro-batch of its own.
        packing: whether rows share a sequence, of at most ``max_tokens`` (then one a micro-batch,
            without padding), or as long as the share's longest row.

    Raises:
        ValueError: ``batch_size`` or ``max_tokens`` is below 1, or ``packing`` no boolean.
    """

    lengths: Sequence[int]
    batch_size: int = 1
    max_tokens: int | None = None
    packing: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is at least 1; got {value}")
        if not isinstance(self.packing, bool):
            raise ValueError(f"packing is true or false; got {self.packing!r}")

    def micro_batches(
        self, rows: Sequence[int], rank: int = 0, world: int = 1
    ) -> list[list[Packed]]:
        """This rank's share of a step's rows, in micro-batches.

        Ranks take turns row by row, so that lengths (rows come sorted) are even across ranks. A
        rank may get none.

        Args:
            rows: row indices of the step, by length.
            rank: this process.
            world: processes that share the step.
        """
        mine = list(rows)[rank::world]
        sequences = self._packed(mine) if self.packing else [[row] for row in mine]
        return list(self._grouped(sequences))

    def describe(self, steps: Sequence[Sequence[int]], world: int = 1) -> list[str]:
        """For people: how many micro-batches some steps make, and how much of them is padding.

        Args:
            steps: row indices of each step.
            world: processes that share a step.
        """
        shares = [self.micro_batches(rows, r, world) for rows in steps for r in range(world)]
        batches = [batch for share in shares for batch in share]
        used = sum(self._length(sequence) for batch in batches for sequence in batch)
        sizes = [len(batch) * max(map(self._length, batch)) for batch in batches]
        layout = "packed" if self.packing else "padded"
        lines = [
            f"batches: {len(batches)} in {len(steps)} steps ({layout}), at most {max(sizes):,} "
            f"positions each, {1 - used / sum(sizes):.1%} padding"
        ]
        if self.max_tokens is not None and max(sizes) > self.max_tokens:
            over = sum(size > self.max_tokens for size in sizes)
            lines.append(
                f"  {over} batches hold one row longer than max_tokens_per_batch "
                f"({self.max_tokens:,}): lower the transform's max_seq_len if memory is short"
            )
        return lines

    def _length(self, sequence: Packed) -> int:
        return sum(int(self.lengths[row]) for row in sequence)

    def _packed(self, rows: list[int]) -> list[Packed]:
        """First-fit decreasing: each row goes into the first sequence that has room for it."""
        room = max([self.max_tokens or 0, *(int(self.lengths[row]) for row in rows)])
        sequences: list[Packed] = []
        free: list[int] = []
        for row in reversed(rows):
            length = int(self.lengths[row])
            place = next((i for i, left in enumerate(free) if left >= length), len(free))
            if place == len(free):
                sequences.append([])
                free.append(room)
            sequences[place].append(row)
            free[place] -= length
        return sorted(sequences, key=self._length)

    def _grouped(self, sequences: list[Packed]) -> Iterator[list[Packed]]:
        """Neighbours in length, as many as fit."""
        batch: list[Packed] = []
        for sequence in sequences:
            if batch and not self._fits(len(batch) + 1, self._length(sequence)):
                yield batch
                batch = []
            batch.append(sequence)
        if batch:
            yield batch

    def _fits(self, sequences: int, longest: int) -> bool:
        if self.max_tokens is None:
            return sequences <= self.batch_size
        return sequences * longest <= self.max_tokens
