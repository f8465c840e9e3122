"""Shared by the data tests: the shipped tokenizer and small ReAct trajectories."""

from __future__ import annotations

import pytest

from sad_components.data import HFTokenizer
from sad_components.trajectory import Message, Trajectory


@pytest.fixture(scope="session")
def tokenizer() -> HFTokenizer:
    return HFTokenizer("shipped:household/tokenizer")


@pytest.fixture
def react():
    """``react(steps, id=..)``: a ReAct chat of that many steps, each worded differently."""

    def make(steps: int = 2, id: str = "t", **known) -> Trajectory:
        messages = [Message("user", "Your task is to: find a cup.")]
        for k in range(1, steps + 1):
            messages += [
                Message("assistant", f"Thought: A cup is in drawer {k}.\nAction: open drawer {k}"),
                Message("user", f"You open the drawer {k}."),
            ]
        return Trajectory(messages, id=id, format="react", **known)

    return make
