"""Batches: rows padded side by side, targets shifted.

Shape legend: B rows, S positions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from sad_components.data.transform import TokenizedTrajectory
from sad_components.loss.spec import LossSpec

#: Span id of padding: no kind, hence supervised by no loss.
PADDING = -1


@dataclass
class Batch:
    """Inputs and shifted targets: position s predicts ``targets_BS[:, s]`` = token s + 1.

    Args:
        tokens_BS: inputs, int64.
        targets_BS: what is predicted, int64.
        span_ids_BS: ``SpanKind`` of the target, -1 on padding.
        steps_BS: step of the target, 0 for context.
        branch_BS: whether the target is a branch token.
        ids: each row's trajectory id.
        keys: each row's :func:`row_key`.
    """

    tokens_BS: Tensor
    targets_BS: Tensor
    span_ids_BS: Tensor
    steps_BS: Tensor
    branch_BS: Tensor
    ids: list[str]
    keys: list[str]

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        per_row = ("ids", "keys")
        tensors = [f.name for f in fields(self) if f.name not in per_row]
        moved = {name: getattr(self, name).to(device) for name in tensors}
        return Batch(**moved, ids=self.ids, keys=self.keys)

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.span_ids_BS != PADDING).sum())


def collate(
    rows: Sequence[TokenizedTrajectory], pad_id: int, spec: LossSpec | None = None
) -> Batch:
    """Pads rows on the right and shifts targets.

    Args:
        rows: at least one.
        pad_id: token id of padding.
        spec: drop what follows a row's last target that this loss supervises (no loss and no
            earlier token depends on it); None keeps everything.
    """
    lengths = [_used_length(row, spec) for row in rows]
    width = max(lengths)
    shape = (len(rows), width)
    tokens = np.full(shape, pad_id, dtype=np.int64)
    targets = np.full(shape, pad_id, dtype=np.int64)
    span_ids = np.full(shape, PADDING, dtype=np.int64)
    steps = np.zeros(shape, dtype=np.int64)
    branch = np.zeros(shape, dtype=bool)
    for i, (row, n) in enumerate(zip(rows, lengths)):
        tokens[i, :n] = row.tokens[:n]
        targets[i, :n] = row.tokens[1 : n + 1]
        span_ids[i, :n] = row.span_ids[1 : n + 1]
        steps[i, :n] = row.steps[1 : n + 1]
        branch[i, :n] = row.branch[1 : n + 1]
    arrays = (tokens, targets, span_ids, steps, branch)
    return Batch(
        *(torch.from_numpy(a) for a in arrays),
        ids=[row.id for row in rows],
        keys=[row_key(row) for row in rows],
    )


def row_key(row: TokenizedTrajectory) -> str:
    """What a row is known by wherever results about it are stored: a hash of its content.

    Returns:
        32 hex digits: 16 of the tokens, then 16 of their span ids.
    """
    parts = (row.tokens.astype("<i8"), row.span_ids.astype("<i1"))
    return "".join(hashlib.blake2b(part.tobytes(), digest_size=8).hexdigest() for part in parts)


def _used_length(row: TokenizedTrajectory, spec: LossSpec | None) -> int:
    """Input positions needed: up to the one that predicts the last supervised target."""
    if spec is None:
        return len(row) - 1
    chosen = spec.supervised(
        torch.from_numpy(row.span_ids[1:].astype(np.int64)), torch.from_numpy(row.branch[1:])
    )
    last = chosen.nonzero()
    return int(last[-1]) + 1 if len(last) else 1


def micro_batches(rows: Sequence[int], batch_size: int, rank: int, world: int) -> list[list[int]]:
    """This rank's share of a step's rows, in micro-batches of at most ``batch_size``.

    Ranks take turns row by row, so that lengths (rows come sorted) are even across ranks. A rank
    may get none.
    """
    mine = list(rows)[rank::world]
    return [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
