"""A JSONL file of trajectories that grows episode by episode and survives a kill at any point.

Beside ``out.jsonl`` lies ``out.jsonl.journal``, one line per episode played, kept or not. An
episode is written to the journal first and to the file second, each with a flush to the disk; what
a kill cut off, or left in the journal alone, is dropped on the next start and played again.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sad_components.envs import Environment, NoSuchTask
from sad_components.evaluation.rollout import Episode, Job


class Collection:
    """The file, its journal, and what they hold so far.

    Args:
        path: the JSONL file; its folder is made.
        settings: what decides the episodes' content, plain JSON; a file begun with other settings
            is not continued.
        resume: go on with an existing file.
        overwrite: begin anew where there is one.

    Raises:
        ValueError: the file exists and neither is allowed, it was begun with other settings, or it
            is damaged elsewhere than at its end.
    """

    def __init__(
        self,
        path: str | Path,
        settings: Mapping[str, Any],
        resume: bool = True,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self.journal_path = self.path.with_name(self.path.name + ".journal")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if overwrite:
            self.path.unlink(missing_ok=True)
            self.journal_path.unlink(missing_ok=True)
        elif self.path.exists() and not resume:
            raise ValueError(
                f"{self.path} exists: set resume=True to go on with it, overwrite=True to begin "
                "anew, or choose another output"
            )
        self._settings = json.loads(json.dumps(settings))
        self.played: dict[Job, dict[str, Any]] = {}
        self._read()

    @property
    def kept(self) -> int:
        """Episodes in the file."""
        return sum(bool(entry["kept"]) for entry in self.played.values())

    @property
    def tokens(self) -> int:
        """Tokens of the agent in the file."""
        return sum(entry["tokens"] for entry in self.played.values() if entry["kept"])

    def add(self, episode: Episode, keep: bool, tokens: int) -> None:
        """Writes an episode down; when this returns, it is on the disk.

        Args:
            episode: played just now.
            keep: whether it goes into the file, or only into the journal.
            tokens: of the agent's turns.
        """
        entry = {
            "id": episode.trajectory.id,
            "task": episode.job.task,
            "seed": episode.job.seed,
            "kept": keep,
            "tokens": tokens,
            "won": episode.won,
            "steps": episode.steps,
            "failure": episode.failure,
        }
        _append(self.journal_path, json.dumps(entry))
        if keep and episode.trajectory.id not in self._written:  # a lost journal: played again
            self._written.add(episode.trajectory.id)
            record = episode.trajectory.to_dict()
            _append(self.path, json.dumps(record, ensure_ascii=False))
        self._take(entry)

    def _take(self, entry: dict[str, Any]) -> None:
        if not entry["failure"]:  # what failed is tried again next time
            self.played[Job(entry["task"], entry["seed"])] = entry

    def _read(self) -> None:
        self._written = {record["id"] for record in _whole_lines(self.path)}
        lines = _whole_lines(self.journal_path)
        if not lines:
            _append(self.journal_path, json.dumps({"settings": self._settings}))
            return
        begun = lines[0].get("settings")
        if begun != self._settings:
            differing = sorted(
                key
                for key in {*(begun or {}), *self._settings}
                if (begun or {}).get(key) != self._settings.get(key)
            )
            raise ValueError(
                f"{self.path} was begun with other settings ({', '.join(differing)}): episodes of "
                "two kinds do not belong in one file; choose another output, or overwrite=True"
            )
        for entry in lines[1:]:
            if entry["id"] in self._written or not entry["kept"]:
                self._take(entry)


def task_stream(env: Environment, seed: int = 0) -> Iterator[str]:
    """Every task of an environment once, from number ``seed`` on; endless where they are."""
    try:
        known = env.tasks(None)
    except NoSuchTask:
        given = 0
        for chunk in (32 * 2**n for n in itertools.count()):
            yield from env.tasks(chunk, seed)[given:]
            given = chunk
    else:
        start = seed % len(known)
        yield from [*known[start:], *known[:start]]


def jobs_of(tasks: Iterator[str], seeds: Sequence[int]) -> Iterator[Job]:
    """Every task with every seed, task by task."""
    return (Job(task, seed) for task in tasks for seed in seeds)


def _append(path: Path, line: str) -> None:
    with open(path, "a", encoding="utf-8") as handle:
        handle.write(line + "\n")
        handle.flush()
        os.fsync(handle.fileno())


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The file's lines as JSON; a last line that was cut off is removed from the file."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with open(path, "r+b") as handle:
            handle.truncate(whole)
    records = []
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise ValueError(
                f"{path}:{number} is not JSON ({error}): the file was damaged by something else "
                "than a kill; repair the line, or overwrite=True"
            ) from None
    return records
