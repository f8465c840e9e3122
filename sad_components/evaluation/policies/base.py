"""What a policy sees of an episode, and what it answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sad_components.trajectory import Message


@dataclass
class EpisodeView:
    """An episode as its policy sees it.

    Args:
        session: number that stays the episode's own as long as it lives; a free one is used again.
        task: id of the task.
        format: name of the transcript format.
        messages: everything said so far; the last message is the environment's.
        rng: the episode's own, from the run's seed, the task and the episode's seed: what is drawn
            from it does not depend on which episodes are played at the same time.
        admissible: actions that would do something, if the policy needs them and they are known.
        expert: the scripted expert's turn, if the policy needs it and there is an expert.
    """

    session: int
    task: str
    format: str
    messages: list[Message]
    rng: random.Random
    admissible: list[str] | None = None
    expert: Message | None = None


@dataclass
class Turn:
    """An agent's turn.

    Args:
        message: the turn as a message of the transcript; for sampled turns with ``token_ids`` and
            ``logprobs``.
        tokens: tokens generated for it; 0 where nobody counts.
        failure: why there is no turn; the episode ends then and counts as failed.
    """

    message: Message = field(default_factory=lambda: Message("assistant", ""))
    tokens: int = 0
    failure: str | None = None


class Policy(Protocol):
    """Plays many episodes at once.

    Attributes:
        name: what records and results call it.
        needs: of ``admissible`` and ``expert_turn``, what the environment has to be asked before
            every turn.
    """

    name: str
    needs: frozenset[str]

    def act(self, episodes: Sequence[EpisodeView]) -> list[Turn]:
        """The next turn of every episode, in order."""
        ...


def text_turn(text: str) -> Turn:
    """A turn that is only text."""
    return Turn(Message("assistant", text))
