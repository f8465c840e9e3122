"""What every environment offers: a task, text out, an action in, and a way back into a state.

An environment is used like this, whatever it is::

    env = make_environment("household", split="heldout")
    task = env.tasks(1)[0]
    observation = env.reset(task)
    observation, reward, done, info = env.step("go to cabinet 1")
    env.restore(task, ["go to cabinet 1"])     # the same state, by replay

Standard library only, so that naming an environment installs nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sad_components.trajectory import Message


class EpisodeOver(RuntimeError):
    """An action after the end of an episode, or before its start."""


class NoSuchTask(ValueError):
    """A task that the environment does not have; says what it has."""


class StepResult(NamedTuple):
    """What an action leads to.

    Args:
        observation: what the environment says; untrusted text.
        reward: in the environment's own unit, gained by this action.
        done: whether the episode is over.
        info: ``won`` (the task is solved), ``valid`` (the action was possible), ``steps`` so far,
            ``truncated`` (out of steps), and whatever the environment adds (``scores``: figures
            by name, averaged over episodes beside the reward).
    """

    observation: str
    reward: float
    done: bool
    info: dict[str, Any]


@dataclass
class Outcome:
    """What :meth:`Environment._act` returns; the base class counts steps and ends the episode.

    Args:
        observation: what the environment says.
        reward: gained by this action.
        done: the episode is over.
        won: the task is solved.
        valid: the action was possible.
        info: more about it.
    """

    observation: str
    reward: float = 0.0
    done: bool = False
    won: bool = False
    valid: bool = True
    info: dict[str, Any] = field(default_factory=dict)


class Environment(ABC):
    """One episode at a time: subclass, set ``name`` and ``instructions``, implement the rest.

    Attributes:
        name: what records and configs call it.
        format: transcript format (``sad_components.formats``) of its records.
        instructions: text that opens the first message, before the first observation.
        variant: distinguishes records of one task (a style, say); part of their ids.

    Args:
        max_steps: actions after which an episode ends unwon.

    Raises:
        ValueError: ``max_steps`` below 1.
    """

    name: str = ""
    format: str = "react"
    instructions: str = ""
    variant: str = ""

    def __init__(self, max_steps: int = 50) -> None:
        if max_steps < 1:
            raise ValueError(f"max_steps is at least 1; got {max_steps}")
        self.max_steps = max_steps
        self._steps = 0
        self._done = True

    # -- what an environment implements ------------------------------------------------------
    @abstractmethod
    def tasks(self, count: int | None = None, seed: int = 0) -> list[str]:
        """Ids of tasks, the same for the same arguments.

        Args:
            count: how many; None: all there are.
            seed: which ones, or from which on.

        Raises:
            NoSuchTask: fewer than ``count``, or None where there is no end of them.
        """

    @abstractmethod
    def _start(self, task: str) -> str:
        """Loads a task and returns its first observation; raises ``NoSuchTask``."""

    @abstractmethod
    def _act(self, action: str) -> Outcome:
        """Does one action; text that is no action gets an outcome with ``valid=False``."""

    def admissible(self) -> list[str] | None:
        """Every action that would do something now, or None when it cannot be listed."""
        return None

    def expert_turn(self) -> Message | None:
        """What the environment's scripted expert writes now; None without an expert."""
        return None

    def describe(self) -> dict[str, Any]:
        """What is known of the current task, plain JSON: its ``task_type``, for example."""
        return {}

    @property
    def task_sentence(self) -> str:
        """The current task in words."""
        return ""

    def close(self) -> None:  # noqa: B027  (most environments hold nothing)
        """Frees what the environment holds; it is not used afterwards."""

    # -- what everybody uses -----------------------------------------------------------------
    def reset(self, task: str | None = None, seed: int = 0) -> str:
        """Starts an episode and returns its first observation.

        Args:
            task: id of the task; None: the first of ``tasks(1, seed)``.
            seed: only read when ``task`` is None.

        Raises:
            NoSuchTask: the environment has no such task.
        """
        chosen = self.tasks(1, seed)[0] if task is None else task
        self._done = True
        observation = self._start(chosen)
        self._steps, self._done = 0, False
        return observation

    def step(self, action: str) -> StepResult:
        """Does one action.

        Raises:
            EpisodeOver: the episode is over, or none was started.
        """
        if self._done:
            raise EpisodeOver("the episode is over (or none was started): call reset first")
        self._steps += 1
        outcome = self._act(action)
        truncated = not outcome.done and self._steps >= self.max_steps
        self._done = outcome.done or truncated
        info = {
            **outcome.info,
            "won": outcome.won,
            "valid": outcome.valid,
            "steps": self._steps,
            "truncated": truncated,
        }
        return StepResult(outcome.observation, outcome.reward, self._done, info)

    def restore(self, task: str, actions: Sequence[str]) -> str:
        """Puts the environment into the state after ``actions`` by playing them again.

        Returns:
            The last observation.

        Raises:
            EpisodeOver: the episode ends before the last of the actions.
            NoSuchTask: the environment has no such task.
        """
        observation = self.reset(task)
        for action in actions:
            observation = self.step(action).observation
        return observation

    def first_message(self, observation: str) -> Message:
        """The message that opens a transcript: instructions, then the first observation."""
        return Message("user", f"{self.instructions}\n\n{observation}".strip())


def slice_tasks(known: Sequence[str], count: int | None, seed: int, name: str) -> list[str]:
    """``count`` of the known tasks from number ``seed`` on, beginning again at the end.

    Raises:
        NoSuchTask: fewer than ``count`` are known.
    """
    if count is None:
        return list(known)
    if not 1 <= count <= len(known):
        raise NoSuchTask(f"{name} has {len(known)} tasks; cannot give {count} of them")
    start = seed % len(known)
    return [*known[start:], *known[:start]][:count]


def require_task(task: str, known: Sequence[str] | dict[str, Any], name: str) -> None:
    """Raises ``NoSuchTask`` unless ``task`` is known."""
    if task not in known:
        some = ", ".join(list(known)[:3])
        raise NoSuchTask(f"{name} has no task {task!r}; it has {len(known)}: {some}, ..")
