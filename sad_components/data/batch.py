"""Batches: rows side by side or one behind another, targets shifted.

Shape legend: B rows, S positions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchtune.modules.attention_utils import create_block_causal_mask, packed_block_causal_mask

from sad_components.data.transform import TokenizedTrajectory
from sad_components.loss.spec import LossSpec

#: Span id of padding: no kind, hence supervised by no loss.
PADDING = -1


@dataclass
class Place:
    """Where a row lies in a batch: positions ``start`` to ``stop`` of sequence ``sequence``.

    Args:
        sequence: 0-based.
        start: first position.
        stop: behind the last one.
        id: the row's trajectory id.
        key: the row's :func:`row_key`.
    """

    sequence: int
    start: int
    stop: int
    id: str
    key: str


@dataclass
class Batch:
    """Inputs and shifted targets: position s predicts ``targets_BS[:, s]`` = token s + 1.

    Args:
        tokens_BS: inputs, int64.
        targets_BS: what is predicted, int64.
        span_ids_BS: ``SpanKind`` of the target, -1 on padding.
        steps_BS: step of the target, 0 for context.
        branch_BS: whether the target is a branch token.
        places: where each row lies, in reading order.
    """

    tokens_BS: Tensor
    targets_BS: Tensor
    span_ids_BS: Tensor
    steps_BS: Tensor
    branch_BS: Tensor
    places: list[Place]

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        tensors = [f.name for f in fields(self) if f.name != "places"]
        moved = {name: getattr(self, name).to(device) for name in tensors}
        return Batch(**moved, places=self.places)

    @property
    def ids(self) -> list[str]:
        """Each row's trajectory id."""
        return [place.id for place in self.places]

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return sum(place.stop - place.start for place in self.places)

    @property
    def packed(self) -> bool:
        """Whether rows share a sequence."""
        return len(self.places) > len(self.tokens_BS)

    @cached_property
    def attention(self) -> dict[str, Any]:
        """What a torchtune decoder needs beside the tokens: nothing, or for packed rows.

        Returns:
            ``input_pos`` [B, S], which starts at 0 in every row, and ``mask``, by which a token
            sees the earlier ones of its own row only: bool [B, S, S] (true: sees), or on a GPU
            flex attention's ``BlockMask`` where torchtune uses that.
        """
        if not self.packed:
            return {}
        width, device = self.tokens_BS.shape[1], self.tokens_BS.device
        lengths = [
            [p.stop - p.start for p in self.places if p.sequence == b]
            for b in range(len(self.tokens_BS))
        ]
        padded = [[*seq, width - sum(seq)] if sum(seq) < width else seq for seq in lengths]
        positions = [torch.cat([torch.arange(n) for n in seq]) for seq in padded]
        # torchtune puts the mask of a CPU's batch on the GPU, too, if there is one
        make = packed_block_causal_mask if device.type == "cuda" else create_block_causal_mask
        mask = make([torch.tensor(seq, device=device) for seq in padded])
        return {"mask": mask, "input_pos": torch.stack(positions).to(device)}


def collate(
    rows: Sequence[TokenizedTrajectory], pad_id: int, spec: LossSpec | None = None
) -> Batch:
    """One row a sequence, padded on the right, targets shifted.

    Args:
        rows: at least one.
        pad_id: token id of padding.
        spec: drop what follows a row's last target that this loss supervises (no loss and no
            earlier token depends on it); None keeps everything.
    """
    return collate_packed([[row] for row in rows], pad_id, spec)


def collate_packed(
    sequences: Sequence[Sequence[TokenizedTrajectory]],
    pad_id: int,
    spec: LossSpec | None = None,
    multiple_of: int = 1,
) -> Batch:
    """Like :func:`collate`, with several rows one behind another in a sequence.

    No row predicts another's first token, and with :attr:`Batch.attention` none sees another.

    Args:
        sequences: rows of each sequence; at least one each.
        pad_id: token id of padding.
        spec: as in :func:`collate`.
        multiple_of: the width is rounded up to a multiple of this (fewer shapes to compile for).
    """
    lengths = [[_used_length(row, spec) for row in rows] for rows in sequences]
    width = -(-max(sum(seq) for seq in lengths) // multiple_of) * multiple_of
    shape = (len(sequences), width)
    tokens = np.full(shape, pad_id, dtype=np.int64)
    targets = np.full(shape, pad_id, dtype=np.int64)
    span_ids = np.full(shape, PADDING, dtype=np.int64)
    steps = np.zeros(shape, dtype=np.int64)
    branch = np.zeros(shape, dtype=bool)
    places = []
    for i, rows in enumerate(sequences):
        start = 0
        for row, n in zip(rows, lengths[i]):
            here = slice(start, start + n)
            tokens[i, here] = row.tokens[:n]
            targets[i, here] = row.tokens[1 : n + 1]
            span_ids[i, here] = row.span_ids[1 : n + 1]
            steps[i, here] = row.steps[1 : n + 1]
            branch[i, here] = row.branch[1 : n + 1]
            places.append(Place(i, start, start + n, row.id, row_key(row)))
            start += n
    arrays = (tokens, targets, span_ids, steps, branch)
    return Batch(*(torch.from_numpy(a) for a in arrays), places)


def blank(pad_id: int) -> Batch:
    """A batch of one position of padding: nothing is supervised, its loss and gradient are 0.

    For a process that has no rows left where every process has to run the model.
    """
    tokens, none = torch.full((1, 1), pad_id), torch.zeros(1, 1, dtype=torch.int64)
    return Batch(tokens, tokens.clone(), none + PADDING, none, none.bool(), [])


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
