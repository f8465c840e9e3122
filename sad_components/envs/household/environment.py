"""The generated games behind the environment protocol."""

from __future__ import annotations

import random
import re
from typing import Any

from sad_components.envs.household.engine import HouseholdEnv
from sad_components.envs.household.episodes import INSTRUCTIONS, ExpertPlayer, describe_game
from sad_components.envs.household.expert import SEARCHES
from sad_components.envs.household.games import GAMES_PER_SPLIT, SPLITS, Game, sample_game
from sad_components.envs.household.renaming import Renaming
from sad_components.envs.household.world import TASK_TYPES
from sad_components.envs.protocol import Environment, NoSuchTask, Outcome
from sad_components.trajectory import Message

_TASK = re.compile(rf"(?P<split>{'|'.join(SPLITS)})-(?P<seed>\d+)")


class HouseholdEnvironment(Environment):
    """Household games; a task is a game's id, ``heldout-00017``.

    Args:
        split: ``train`` or ``heldout``: which games :meth:`tasks` gives.
        style: ``dense`` (the instructions ask for a thought with every action), ``checking`` (the
            same, and a thought says first whether what is sought is here) or ``sparse``.
        task_types: which types :meth:`tasks` gives, in turn; None: all six.
        wrong_turn_share: share of the expert's episodes with a wrong turn or two, in [0, 1].
        renamed_share: share of the games in which objects go by each other's names, in [0, 1]
            (see :class:`~sad_components.envs.household.renaming.Renaming`).
        search: how the expert searches: ``likely`` (usual places first) or ``listed`` (round the
            room as it was told of, which can be read off, not known).
        max_steps: actions after which an episode ends unwon.

    Raises:
        ImportError: the ``household`` extra is not installed.
        ValueError: no such split, style, search, task type or share.
    """

    name = "household"

    def __init__(
        self,
        split: str = "heldout",
        style: str = "dense",
        task_types: list[str] | None = None,
        wrong_turn_share: float = 0.0,
        max_steps: int = 50,
        renamed_share: float = 0.0,
        search: str = "likely",
    ) -> None:
        super().__init__(max_steps)
        if split not in SPLITS:
            raise ValueError(f"a split is one of {', '.join(SPLITS)}; got {split!r}")
        if style not in INSTRUCTIONS:
            raise ValueError(f"a style is one of {', '.join(INSTRUCTIONS)}; got {style!r}")
        if search not in SEARCHES:
            raise ValueError(f"a search goes by one of {', '.join(SEARCHES)}; got {search!r}")
        unknown = [name for name in task_types or () if name not in TASK_TYPES]
        if unknown or task_types == []:
            raise ValueError(
                f"task_types is a non-empty list of {', '.join(TASK_TYPES)}; got {task_types}"
            )
        for name, share in (("wrong_turn", wrong_turn_share), ("renamed", renamed_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}_share is a probability in [0, 1]; got {share}")
        self.split, self.variant = split, style
        self.instructions = INSTRUCTIONS[style]
        self._task_types = frozenset(task_types or TASK_TYPES)
        self._wrong_turn_share, self._renamed_share = wrong_turn_share, renamed_share
        self._search = search
        self._names = Renaming()
        self._engine = HouseholdEnv(max_steps)
        self._player: ExpertPlayer | None = None
        self._log: list[str] = []

    def tasks(self, count: int | None = None, seed: int = 0) -> list[str]:
        """``count`` games of the split, in order, beginning with number ``seed``."""
        if count is None:
            raise NoSuchTask("household games have no end: say how many tasks you want")
        found: list[str] = []
        number = seed
        while len(found) < count and number < GAMES_PER_SPLIT:
            if TASK_TYPES[number % len(TASK_TYPES)] in self._task_types:
                found.append(f"{self.split}-{number:05d}")
            number += 1
        return found

    @property
    def game(self) -> Game:
        """The game being played."""
        return self._engine.game

    def _start(self, task: str) -> str:
        match = _TASK.fullmatch(task)
        if match is None:
            raise NoSuchTask(f"a household task is 'train-n' or 'heldout-n'; got {task!r}")
        first = self._engine.reset(sample_game(int(match["seed"]), match["split"]))
        self._player = None
        self._log = [first]
        renamed = random.Random(f"renamed:{self.game.id}").random() < self._renamed_share
        self._names = Renaming(self.game.id if renamed else None)
        return self._names.show(first)

    def _act(self, action: str) -> Outcome:
        action = self._names.restore(action).strip()
        observation, reward, _, info = self._engine.step(action)
        if self._player is not None:
            self._player.observe(observation, action)
        self._log.append(observation)
        shown = self._names.show(observation)
        return Outcome(shown, reward, info["won"], info["won"], info["valid"])

    def admissible(self) -> list[str] | None:
        return [self._names.show(action) for action in self._engine.admissible()]

    def expert_turn(self) -> Message | None:
        """The expert's turn in this state, whoever acted before."""
        if self._player is None:
            self._player = ExpertPlayer(
                self._engine, self._log[0], self.variant, self._wrong_turn_share, self._search
            )
            for observation in self._log[1:]:
                self._player.observe(observation)
        message = self._player.turn()[0]
        message.content = self._names.show(message.text)
        if message.acceptable:
            message.acceptable = [self._names.show(action) for action in message.acceptable]
        return message

    def describe(self) -> dict[str, Any]:
        return {**describe_game(self.game, self.variant), **self._names.describe()}

    @property
    def task_sentence(self) -> str:
        sentence = self._log[0].rsplit("Your task is to: ", 1)[-1].strip().removesuffix(".")
        return self._names.show(sentence)
