"""An ablation: spans in random places, as many tokens of each kind as before."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sad_components.data.transform import TokenizedTrajectory


def shuffle_spans(row: TokenizedTrajectory, seed: int) -> TokenizedTrajectory:
    """The row with its tokens as they are and what they are labelled as in random places.

    Span kind, step and branch mark of a token move together, to any place of the row but the
    first (nothing predicts the first token, so that the supervised counts would change). A place
    may have held any kind: the observations' tokens are supervised as often as chance has it. That
    a branch mark stays with its kind leaves the counts per kind as they are under both choices of
    the loss's ``branch``, and the steps' counts too.

    Args:
        row: with real spans, truncated already.
        seed: with the row's tokens it decides the places: the same on every run and rank.
    """
    content = hashlib.blake2b(row.tokens.astype("<i8").tobytes(), digest_size=8).digest()
    random = np.random.default_rng([seed, int.from_bytes(content, "little")])
    places = np.r_[0, 1 + random.permutation(len(row) - 1)]
    moved = {name: getattr(row, name)[places] for name in ("span_ids", "steps", "branch")}
    return replace(row, **moved)
