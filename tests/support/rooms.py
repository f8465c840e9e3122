"""An environment without an engine, for tests: doors with numbers, and tasks that misbehave."""

from __future__ import annotations

import os
import time
from typing import Any

from sad_components.envs import Environment, Outcome
from sad_components.envs.protocol import require_task, slice_tasks
from sad_components.trajectory import Message


class Rooms(Environment):
    """Task ``n`` is won by ``open door n`` after looking around ``n % 3`` times.

    Tasks named ``raises``, ``hangs`` and ``dies`` do so at their second action.

    Args:
        tasks: ids; digits are normal tasks.
        pause: seconds that an action takes.
        observation: said after every action.
    """

    name = "rooms"
    instructions = "Reply with one action. Actions: look, open door N"

    def __init__(
        self,
        tasks: list[str] | int = 12,
        pause: float = 0.0,
        observation: str = "You see doors.",
        max_steps: int = 6,
    ) -> None:
        super().__init__(max_steps)
        self._tasks = [str(n) for n in range(tasks)] if isinstance(tasks, int) else list(tasks)
        self._pause, self._observation = pause, observation

    def tasks(self, count: int | None = None, seed: int = 0) -> list[str]:
        return slice_tasks(self._tasks, count, seed, self.name)

    def _start(self, task: str) -> str:
        require_task(task, self._tasks, self.name)
        self._task, self._looked, self._acted = task, 0, 0
        return f"{self._observation} Your door is {task}."

    def _act(self, action: str) -> Outcome:
        time.sleep(self._pause)
        self._acted += 1
        if self._acted == 2:
            if self._task == "raises":
                raise RuntimeError("the roof fell in")
            if self._task == "hangs":
                time.sleep(600)
            if self._task == "dies":
                os._exit(3)
        if action == "look":
            self._looked += 1
            return Outcome(self._observation)
        if action == f"open door {self._task}" and self._looked >= self._needed:
            return Outcome("You win.", 1.0, done=True, won=True, info={"scores": {"style": 0.5}})
        return Outcome("It is shut.", valid=action.startswith("open door "))

    @property
    def _needed(self) -> int:
        return int(self._task) % 3 if self._task.isdigit() else 0

    def admissible(self) -> list[str]:
        return ["look", *(f"open door {t}" for t in self._tasks[:4])]

    def expert_turn(self) -> Message:
        if self._looked < self._needed:
            return Message("assistant", "Thought: I look first.\nAction: look")
        return Message("assistant", f"Action: open door {self._task}")

    def describe(self) -> dict[str, Any]:
        return {"task_type": "even" if self._task.isdigit() and int(self._task) % 2 == 0 else "odd"}

    @property
    def task_sentence(self) -> str:
        return f"open door {self._task}"
