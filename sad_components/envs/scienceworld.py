"""ScienceWorld's tasks: elementary science in a simulated world (it needs Java)."""

from __future__ import annotations

from typing import Any

from sad_components.envs.protocol import Environment, NoSuchTask, Outcome
from sad_components.trajectory import Message

_MISSING = (
    "ScienceWorld is not installed; run: pip install 'torchtune-sad[scienceworld]' "
    "(it also needs Java 8 or later)"
)


class ScienceWorldEnvironment(Environment):
    """A task is ``name:variation``, ``boil:0``; an action's reward is what it adds to the score.

    Scores are divided by 100, so that an episode's rewards add up to 1 when all is done.
    ScienceWorld gives -100 for a mistake that cannot be mended: that ends the episode, and what
    it had before stays.

    Args:
        task_names: which tasks; None: all 30.
        split: ``train``, ``dev`` or ``test``: ScienceWorld's variations.
        simplifications: as ScienceWorld names them, ``easy`` for all.
        max_steps: actions after which an episode ends unwon.

    Raises:
        ImportError: the ``scienceworld`` extra is not installed.
        ValueError: no such split or task.
    """

    name = "scienceworld"
    instructions = "Do a task in a simulated world. Reply with one thought and one action."

    def __init__(
        self,
        task_names: list[str] | None = None,
        split: str = "dev",
        simplifications: str = "",
        max_steps: int = 100,
    ) -> None:
        super().__init__(max_steps)
        if split not in ("train", "dev", "test"):
            raise ValueError(f"a split is train, dev or test; got {split!r}")
        try:
            from scienceworld import ScienceWorldEnv
        except ImportError as error:
            raise ImportError(_MISSING) from error
        self._env = ScienceWorldEnv("", envStepLimit=max_steps + 1)
        self._split, self._simplifications = split, simplifications
        known = list(self._env.get_task_names())
        unknown = sorted(set(task_names or ()) - set(known))
        if unknown:
            raise ValueError(f"tasks are {', '.join(known)}; got {', '.join(unknown)}")
        self._names = task_names or known
        self._gold: list[str] = []
        self._score = 0.0

    def tasks(self, count: int | None = None, seed: int = 0) -> list[str]:
        """Variation after variation of the split, every task in turn."""
        found: list[str] = []
        wanted = None if count is None else seed + count
        variations = {name: self._variations(name) for name in self._names}
        for turn in range(max(map(len, variations.values()))):
            for name, numbers in variations.items():
                if turn < len(numbers):
                    found.append(f"{name}:{numbers[turn]}")
            if wanted is not None and len(found) >= wanted:
                break
        if wanted is not None and len(found) < wanted:
            raise NoSuchTask(f"scienceworld has {len(found)} such tasks; cannot give {wanted}")
        return found[seed:wanted] if wanted is not None else found

    def _variations(self, name: str) -> list[int]:
        self._env.load(name, 0, self._simplifications)
        return list(getattr(self._env, f"get_variations_{self._split}")())

    def _start(self, task: str) -> str:
        name, _, variation = task.rpartition(":")
        if name not in self._names or not variation.isdigit():
            raise NoSuchTask(f"a scienceworld task is 'name:variation'; got {task!r}")
        self._env.load(name, int(variation), self._simplifications, generateGoldPath=True)
        observation, _ = self._env.reset()
        self._task, self._score = name, 0.0
        self._gold = list(self._env.get_gold_action_sequence())
        return f"{self._env.get_task_description()}\n{observation}"

    def _act(self, action: str) -> Outcome:
        observation, _, done, info = self._env.step(action)
        if self._gold and action == self._gold[0]:
            self._gold = self._gold[1:]
        score = max(float(info["score"]), 0.0) / 100
        failed = float(info["score"]) < 0
        gained = 0.0 if failed else score - self._score
        self._score = self._score if failed else score
        valid = not observation.startswith("No known action matches")
        return Outcome(observation, gained, bool(done) or failed, score >= 1.0, valid)

    def admissible(self) -> list[str] | None:
        return sorted(self._env.get_valid_action_object_combinations())

    def expert_turn(self) -> Message | None:
        """The next of ScienceWorld's gold actions, if the ones before have been followed."""
        return Message("assistant", f"Action: {self._gold[0]}") if self._gold else None

    def describe(self) -> dict[str, Any]:
        return {"task_type": self._task, "split": self._split}

    @property
    def task_sentence(self) -> str:
        return str(self._env.get_task_description())

    def close(self) -> None:
        self._env.close()
