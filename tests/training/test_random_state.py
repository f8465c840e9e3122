from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from sad_components.training.random_state import random_states, set_random_state

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_state():
    states = random_states(CPU)
    yield
    set_random_state(states, 0, CPU)


def drawn() -> tuple:
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1)


def test_the_same_is_drawn_again_after_a_state_was_written_and_read(tmp_path):
    random.gauss(0, 1)  # leaves a half-used pair behind
    torch.save(random_states(CPU), tmp_path / "states.pt")
    expected = drawn()
    assert drawn() != expected
    states = torch.load(tmp_path / "states.pt", weights_only=True)
    set_random_state(states, 0, CPU)
    assert drawn() == expected


def test_a_rank_that_there_was_not_keeps_its_own():
    states = random_states(CPU)
    torch.manual_seed(99)
    expected = torch.rand(1)
    torch.manual_seed(99)
    set_random_state(states, 1, CPU)
    assert torch.equal(torch.rand(1), expected)
