"""A policy plays and an expert corrects it, so that its own mistakes can be learnt from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sad_components.evaluation.policies.base import EpisodeView, Policy, Turn
from sad_components.evaluation.policies.local import made
from sad_components.evaluation.policies.scripted import ExpertPolicy
from sad_components.evaluation.turns import TurnReader


class CorrectedPolicy:
    """Both say a turn in every state; what is learnt later are the expert's (DAgger).

    Where their actions agree, the expert's turn is played. Where they differ, the expert's is
    played with probability ``share``: a correction. Else the policy's own is played with
    ``weight: 0``, which nobody learns, and the expert answers to what came of it. (Ross et al.
    2011; a transcript is one history, so a state in which the policy goes on has no label here.)

    Args:
        policy: who is corrected, or a config of it (a mapping with ``_component_``).
        expert: who corrects, likewise; None: the environment's scripted expert.
        share: probability in [0, 1] of a correction where the two differ.
        name: what records and results call both together.

    Raises:
        ValueError: a share outside [0, 1].
    """

    def __init__(
        self,
        policy: Policy | Mapping[str, Any],
        expert: Policy | Mapping[str, Any] | None = None,
        share: float = 0.5,
        name: str = "corrected",
    ) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share is a probability in [0, 1]; got {share}")
        self._policy: Policy = made(policy)
        self._expert: Policy = ExpertPolicy() if expert is None else made(expert)
        self._share = share
        self.name = name
        self.needs = self._policy.needs | self._expert.needs

    def act(self, episodes: Sequence[EpisodeView]) -> list[Turn]:
        own, right = self._policy.act(episodes), self._expert.act(episodes)
        return [self._chosen(*each) for each in zip(episodes, own, right, strict=True)]

    def _chosen(self, view: EpisodeView, own: Turn, right: Turn) -> Turn:
        for turn in (own, right):
            if turn.failure is not None:
                return turn
        reader = TurnReader(view.format)
        own_action, right_action = (reader.read(t.message.text).action for t in (own, right))
        corrected = view.rng.random() < self._share  # drawn always: no state shifts later draws
        if own_action == right_action or corrected:
            return replace(right, tokens=own.tokens + right.tokens)
        unlearnt = replace(own.message, weight=0)
        return Turn(unlearnt, own.tokens + right.tokens)
