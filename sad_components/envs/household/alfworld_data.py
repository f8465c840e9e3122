"""ALFWorld's own games (``alfworld-download``), played in its own stack.

Each game file brings its grammar: newer ones say ``move X to Y``, older ones ``put X in/on Y``.
Either wording is understood in both.
"""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path
from typing import Any

from sad_components.envs.household.checking import narrator_of
from sad_components.envs.household.engine import NOTHING_HAPPENS, kept_argv
from sad_components.envs.household.episodes import INSTRUCTIONS, render_turn
from sad_components.envs.household.expert import Expert
from sad_components.envs.household.pddl import MISSING_EXTRA
from sad_components.envs.household.textworld_speed import memoise_parsers
from sad_components.envs.household.thoughts import Narrator
from sad_components.envs.protocol import Environment, Outcome, require_task, slice_tasks
from sad_components.trajectory import Message

SPLITS = ("train", "valid_seen", "valid_unseen")
#: ALFWorld leaves these out of its text games.
_LEFT_OUT = ("movable", "Sliced")
_MOVE = re.compile(r"move (?P<thing>.+?) to (?P<place>.+)")
_PUT = re.compile(r"put (?P<thing>.+?) (?:in/on|in|on) (?P<place>.+)")
_ANSWER_TO_PUT = re.compile(r"You put the (?P<thing>.+?) (?:in/on|in|on) the (?P<place>.+?)\.")


class AlfWorldEnvironment(Environment):
    """Games of an ``ALFWORLD_DATA`` folder; a task is ``<task>/<trial>``, as the folders are named.

    Args:
        data: the folder; None: the environment variable ``ALFWORLD_DATA``.
        split: ``valid_seen``, ``valid_unseen`` or ``train``.
        style: ``dense`` or ``sparse``: what the instructions ask for, and how the expert talks.
        max_steps: actions after which an episode ends unwon.

    Raises:
        ImportError: the ``household`` extra is not installed.
        ValueError: no folder given, no such split or style, or no solvable game there.
    """

    name = "alfworld"

    def __init__(
        self,
        data: str | Path | None = None,
        split: str = "valid_unseen",
        style: str = "sparse",
        max_steps: int = 50,
    ) -> None:
        super().__init__(max_steps)
        if split not in SPLITS:
            raise ValueError(f"ALFWorld's splits are {', '.join(SPLITS)}; got {split!r}")
        if style not in INSTRUCTIONS:
            raise ValueError(f"a style is one of {', '.join(INSTRUCTIONS)}; got {style!r}")
        folder = data or os.environ.get("ALFWORLD_DATA")
        if not folder:
            raise ValueError("give ALFWorld's games by data=.. or in the variable ALFWORLD_DATA")
        self._games = _solvable_games(Path(folder).expanduser(), split)
        self.split, self.variant = split, style
        self._says_put = False
        self._env: Any = None
        self._log: list[tuple[str, str]] = []
        self._expert: tuple[Expert, Narrator] | None = None
        _memoise_parsers()

    def tasks(self, count: int | None = None, seed: int = 0) -> list[str]:
        return slice_tasks(list(self._games), count, seed, self.name)

    @property
    def instructions(self) -> str:  # type: ignore[override]
        """As for generated games, with the verb that this game's grammar knows."""
        text = INSTRUCTIONS[self.variant]
        return text.replace("move O to R", "put O in/on R") if self._says_put else text

    def _start(self, task: str) -> str:
        require_task(task, self._games, self.name)
        self._file = self._games[task]
        self._says_put = "put {o} in/on {r}" in self._file.read_text(encoding="utf-8")
        with kept_argv():
            self._env = _new_env()
            self._env.load(str(self._file))
            self._state = self._env.reset()
        _, room, task_line = str(self._state.feedback).strip().split("\n\n")
        self._first = f"{room}\n{task_line}"
        self._log, self._expert = [], None
        return self._first

    def _act(self, action: str) -> Outcome:
        known = self.admissible()
        command = action.strip()
        command = command if command in known else _other_wording(command)
        self._state, _, _ = self._env.step(command)
        observation = str(self._state.feedback).strip()
        won = bool(self._state["won"])
        self._log.append((command, observation))
        if self._expert is not None:
            self._expert[0].observe(_as_generated(command, observation))
        return Outcome(observation, float(won), won, won, valid=command in known)

    def admissible(self) -> list[str]:
        return list(self._state["admissible_commands"])

    def expert_turn(self) -> Message | None:
        """The expert of the generated games; None for a task that it does not know."""
        if self._expert is None:
            try:
                expert = Expert(self._first, random.Random(str(self._file.parent.name)))
            except ValueError:
                return None
            for command, observation in self._log:
                expert.observe(_as_generated(command, observation))
            narrator = narrator_of(self.variant, random.Random(str(self._file.parent.name)))
            self._expert = (expert, narrator)
        expert, narrator = self._expert
        decision = expert.decide()
        thought = narrator.thought(decision, expert.beliefs)
        action = _other_wording(decision.action) if self._says_put else decision.action
        return Message("assistant", render_turn(thought, action))

    def describe(self) -> dict[str, Any]:
        about = self._file.with_name("traj_data.json")
        known = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
        kind = {"task_type": known["task_type"]} if known.get("task_type") else {}
        return {**kind, "split": self.split}

    @property
    def task_sentence(self) -> str:
        return self._first.rsplit("Your task is to: ", 1)[-1].strip().removesuffix(".")

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None


def _solvable_games(root: Path, split: str) -> dict[str, Path]:
    """Task id -> game file, sorted."""
    folders = [root / split, root / "json_2.1.1" / split]
    folder = next((f for f in folders if f.is_dir()), None)
    if folder is None:
        raise ValueError(
            f"no folder {split} in {root}, nor in its json_2.1.1: is it ALFWORLD_DATA?"
        )
    games = {}
    for file in sorted(folder.glob("*/*/game.tw-pddl")):
        task = file.parent.relative_to(folder).as_posix()
        if any(word in task for word in _LEFT_OUT):
            continue
        if json.loads(file.read_text(encoding="utf-8")).get("solvable"):
            games[task] = file
    if not games:
        raise ValueError(f"{folder} holds no solvable */*/game.tw-pddl")
    return games


def _new_env() -> Any:
    try:
        import textworld
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
        from textworld.envs.pddl import PddlEnv
    except ImportError as error:
        raise ImportError(MISSING_EXTRA) from error
    return AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)))


def _memoise_parsers() -> None:
    try:
        memoise_parsers()
    except ImportError as error:
        raise ImportError(MISSING_EXTRA) from error


def _other_wording(action: str) -> str:
    """``put X in/on Y`` for ``move X to Y`` and the other way round; other actions as they are."""
    if match := _MOVE.fullmatch(action):
        return f"put {match['thing']} in/on {match['place']}"
    if match := _PUT.fullmatch(action):
        return f"move {match['thing']} to {match['place']}"
    return action


def _as_generated(command: str, observation: str) -> str:
    """An older grammar's answer in the words of the newer one, which the expert reads."""
    if command.startswith("go to ") and observation != NOTHING_HAPPENS:
        place = command.removeprefix("go to ")
        arrived = f"You arrive at {place}. "
        return observation if arrived in observation else arrived + observation
    return _ANSWER_TO_PUT.sub(r"You move the \g<thing> to the \g<place>.", observation)
