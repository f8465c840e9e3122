"""Any game file that TextWorld plays: its own, Inform's, and Z-machine games by Jericho."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sad_components.envs.protocol import Environment, Outcome, require_task, slice_tasks
from sad_components.trajectory import Message

_PROMPT = re.compile(r"\n>[^\n]*\s*\Z")
_MISSING = (
    "game files need TextWorld, which is not installed; run: pip install 'torchtune-sad[household]'"
)


class TextWorldEnvironment(Environment):
    """One game per file; a task is the file's name. Won when the game says so.

    The reward of an action is what it adds to the game's score, divided by the highest score if
    the game knows it. Files made by ``tw-make`` list admissible actions and have an expert, a
    shortest way to win; others may have neither.

    Args:
        games: game files (``.z8``, ``.ulx``, ``.z5``, ..), or folders of them.
        max_steps: actions after which an episode ends unwon.

    Raises:
        ImportError: TextWorld is not installed.
        ValueError: no game there, or two of the same name.
    """

    name = "textworld"
    instructions = "Play the game. Reply with one action, a short command in English."
    SUFFIXES = (".z8", ".ulx", ".z5", ".z3", ".z1", ".z2", ".z4", ".z6", ".z7")

    def __init__(self, games: str | Path | Sequence[str | Path], max_steps: int = 50) -> None:
        super().__init__(max_steps)
        try:
            import textworld
        except ImportError as error:
            raise ImportError(_MISSING) from error
        self._textworld = textworld
        paths = [games] if isinstance(games, str | Path) else list(games)
        found = [file for path in paths for file in _game_files(Path(path), self.SUFFIXES)]
        self._files = {file.name: file for file in found}
        if not found or len(self._files) < len(found):
            raise ValueError(
                "textworld needs game files of different names, or folders that hold some; got "
                f"{len(found)} files, {len(self._files)} names, from {[str(p) for p in paths]}"
            )
        self._env: Any = None

    def tasks(self, count: int | None = None, seed: int = 0) -> list[str]:
        return slice_tasks(sorted(self._files), count, seed, self.name)

    def _start(self, task: str) -> str:
        require_task(task, self._files, self.name)
        self.close()
        infos = self._textworld.EnvInfos(
            admissible_commands=True, won=True, lost=True, score=True, max_score=True,
            objective=True, policy_commands=True,
        )  # fmt: skip
        self._env = self._textworld.start(str(self._files[task]), request_infos=infos)
        self._state = self._env.reset()
        self._score = 0.0
        return _text(self._state.feedback)

    def _act(self, action: str) -> Outcome:
        known = self.admissible()
        self._state, _, done = self._env.step(action.strip())
        score = float(self._state.get("score") or 0)
        gained, self._score = score - self._score, score
        won = bool(self._state.get("won"))
        over = bool(done) or won or bool(self._state.get("lost"))
        valid = bool(action.strip()) and (known is None or action.strip() in known)
        reward = gained / (self._state.get("max_score") or 1)
        return Outcome(_text(self._state.feedback), reward, over, won, valid)

    def admissible(self) -> list[str] | None:
        return self._state.get("admissible_commands") or None

    def expert_turn(self) -> Message | None:
        """The next command of a shortest way to win, where the game file tells it."""
        commands = self._state.get("policy_commands")
        return Message("assistant", f"Action: {commands[0]}") if commands else None

    @property
    def task_sentence(self) -> str:
        return " ".join(str(self._state.get("objective") or "").split())

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None


def _text(feedback: str) -> str:
    """What the game says, without the prompt and the status line behind it."""
    return _PROMPT.sub("", feedback).strip()


def _game_files(path: Path, suffixes: Sequence[str]) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix in suffixes)
    return [path] if path.is_file() else []
