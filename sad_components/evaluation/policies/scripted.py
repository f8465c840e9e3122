"""Policies without a model: the environment's expert, chance, and turns written beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sad_components.evaluation.policies.base import EpisodeView, Turn, text_turn
from sad_components.evaluation.turns import TurnReader


class ExpertPolicy:
    """Writes what the environment's scripted expert would (``Environment.expert_turn``).

    Args:
        name: what results call it.
    """

    needs = frozenset({"expert_turn"})

    def __init__(self, name: str = "expert") -> None:
        self.name = name

    def act(self, episodes: Sequence[EpisodeView]) -> list[Turn]:
        return [
            Turn(view.expert) if view.expert else Turn(failure="the environment has no expert")
            for view in episodes
        ]


class RandomPolicy:
    """Does any admissible action, each as likely as the other.

    Args:
        name: what results call it.
    """

    needs = frozenset({"admissible"})

    def __init__(self, name: str = "random") -> None:
        self.name = name

    def act(self, episodes: Sequence[EpisodeView]) -> list[Turn]:
        return [self._turn(view) for view in episodes]

    def _turn(self, view: EpisodeView) -> Turn:
        if not view.admissible:
            return Turn(failure="the environment lists no admissible actions")
        action = view.rng.choice(view.admissible)
        return text_turn(TurnReader(view.format).write(None, action))


class ScriptedPolicy:
    """Does what was written down for each task.

    Args:
        script: task id -> its actions in order, or a function from an :class:`EpisodeView` to the
            next action. A task without a further action gets an empty turn.
        name: what results call it.
    """

    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        script: Mapping[str, Sequence[str]] | Callable[[EpisodeView], str],
        name: str = "scripted",
    ) -> None:
        self.name = name
        self._script = script

    def act(self, episodes: Sequence[EpisodeView]) -> list[Turn]:
        return [
            text_turn(TurnReader(view.format).write(None, self._action(view))) for view in episodes
        ]

    def _action(self, view: EpisodeView) -> str:
        if callable(self._script):
            return self._script(view)
        actions = self._script.get(view.task, ())
        done = sum(message.role == "assistant" for message in view.messages)
        return actions[done] if done < len(actions) else ""
