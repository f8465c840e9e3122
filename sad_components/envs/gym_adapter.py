"""Anybody's own environment with gym's ``reset`` and ``step``, behind the protocol."""

from __future__ import annotations

from typing import Any

from sad_components.envs.protocol import Environment, Outcome


class GymEnvironment(Environment):
    """Plays an object that has ``reset`` and ``step`` as gym or gymnasium know them.

    ``reset(seed=n)`` (or ``reset(n)``, or ``reset()``) returns text, or ``(text, info)``;
    ``step(action)`` returns ``(text, reward, done, info)`` or gymnasium's five values. The task ids
    are the seeds ``"0"``, ``"1"``, .. A ``won`` in the info says whether the task is solved,
    without it a positive reward at the end. ``admissible()`` and ``instructions`` are used if
    there.

    Args:
        env: the object.
        name: what records call it.
        instructions: text that opens the first message; None: the object's own, if any.
        max_steps: actions after which an episode ends unwon.

    Raises:
        ValueError: the object has no ``reset`` or ``step``.
    """

    def __init__(
        self, env: Any, name: str = "gym", instructions: str | None = None, max_steps: int = 50
    ) -> None:
        super().__init__(max_steps)
        missing = [m for m in ("reset", "step") if not callable(getattr(env, m, None))]
        if missing:
            raise ValueError(
                f"{name} is a {type(env).__name__} without {' and '.join(missing)}: an environment "
                "has gym's reset and step, or is a sad_components.envs.protocol.Environment"
            )
        self._env = env
        self.name = name
        own = getattr(env, "instructions", "")
        self.instructions = own if instructions is None else instructions

    def tasks(self, count: int | None = None, seed: int = 0) -> list[str]:
        return [str(n) for n in range(seed, seed + (1 if count is None else count))]

    def _start(self, task: str) -> str:
        try:
            first = self._env.reset(seed=int(task))
        except TypeError:  # an environment that takes no seed has one task
            first = self._env.reset()
        return str(first[0] if isinstance(first, tuple) else first)

    def _act(self, action: str) -> Outcome:
        result = self._env.step(action)
        if len(result) == 5:
            observation, reward, terminated, truncated, info = result
            done = terminated or truncated
        else:
            observation, reward, done, info = result
        won = bool(info.get("won", done and reward > 0))
        return Outcome(
            str(observation), float(reward), bool(done), won, bool(info.get("valid", True))
        )

    def admissible(self) -> list[str] | None:
        own = getattr(self._env, "admissible", None)
        return own() if callable(own) else None
