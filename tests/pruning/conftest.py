"""Rows of random tokens, and tiny teachers with units that do nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hf_families import VOCAB

from sad_components.data.transform import TokenizedTrajectory
from sad_components.pruning.importance import Rows


def random_row(length: int, seed: int) -> TokenizedTrajectory:
    """Half of the tokens are the agent's, in two stretches."""
    generator = np.random.default_rng(seed)
    kinds = np.array([0, 1, 2, 3])[np.arange(length) * 8 // length % 4]
    return TokenizedTrajectory(
        tokens=generator.integers(VOCAB, size=length),
        span_ids=kinds,
        steps=np.ones(length, dtype=np.int64),
        branch=np.zeros(length, dtype=bool),
        id=f"row-{seed}",
    )


@pytest.fixture
def rows() -> Rows:
    return Rows([random_row(length, seed) for seed, length in enumerate((24, 31, 17))])


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(VOCAB, (3, 29), generator=torch.Generator().manual_seed(1))
