"""What a report is made of: training runs, and players with their episodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sad_components.report.reading import count, dig, mapping, number


@dataclass
class Curve:
    """A metric over optimizer steps.

    Args:
        steps: optimizer steps, in the order of the file.
        values: as long; NaN where the run logged no finite number.
    """

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, step: float, value: float) -> None:
        """Takes one point in."""
        self.steps.append(step)
        self.values.append(value)


@dataclass
class TrainingRun:
    """What ``recipes/structured_kd.py`` has left in a folder.

    Args:
        label: what the report calls it.
        path: the folder.
        summary: ``summary.json``; empty if the run has not finished.
        curves: metric name -> its curve.
        heldout: metric name -> its values on the held-out trajectories.
    """

    label: str
    path: Path
    summary: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    heldout: dict[str, Curve] = field(default_factory=dict)

    def scores(self, when: str) -> dict[str, Any]:
        """The held-out scores ``before``, ``after`` or of the ``teacher``; may be empty."""
        return mapping(dig(self.summary, "heldout", when))

    def parameters(self, whose: str) -> int | None:
        """Parameters of ``student`` or ``teacher``, if the run wrote them down."""
        return count(dig(self.summary, "parameters", whose))


@dataclass
class PlayedEpisode:
    """One line of ``episodes.jsonl`` or of a collection's journal.

    Args:
        id: of its trajectory.
        task, seed: what was played.
        won: whether the task was solved.
        steps: actions done.
        task_type: the task's type; ``all`` where the environment has none.
        actions: what was done; None where only the transcript tells.
        failure: why it could not be played to its end; None if it could.
    """

    id: str
    task: str
    seed: int
    won: bool
    steps: int
    task_type: str = "all"
    actions: list[str] | None = None
    failure: str | None = None

    @property
    def job(self) -> tuple[str, int]:
        """What was played: two players are compared on equal jobs."""
        return self.task, self.seed


@dataclass
class Player:
    """Who played: a policy of ``recipes/evaluate_agent.py``, or a collection's.

    Args:
        label: what the report calls it.
        name: of the policy.
        run: label of its run.
        environment: where it played.
        figures: what ``results.json`` says of it; empty for a collection.
        episodes: in the order of the file.
        transcripts: JSONL file of the trajectories, if there is one.
    """

    label: str
    name: str
    run: str
    environment: str
    figures: dict[str, Any] = field(default_factory=dict)
    episodes: list[PlayedEpisode] = field(default_factory=list)
    transcripts: Path | None = None

    @property
    def parameters(self) -> int | None:
        """Parameters of its model, if it is one and the results say so."""
        return count(self.figures.get("parameters"))

    def figure(self, *keys: str) -> float | None:
        """A number of its results, by its path of keys."""
        return number(dig(self.figures, *keys))

    def won_of(self, task_type: str | None = None) -> tuple[int, int] | None:
        """Episodes won and begun, all or of a type; None where nothing is known."""
        if task_type is None:
            told = dig(self.figures, "success")
        else:
            told = dig(self.figures, "by_task_type", task_type)
        won, begun = count(dig(told, "won")), count(dig(told, "episodes"))
        if won is not None and begun is not None and won <= begun:
            return won, begun
        mine = [e for e in self.episodes if task_type in (None, e.task_type)]
        return (sum(e.won for e in mine), len(mine)) if mine else None

    def task_types(self) -> set[str]:
        """Types of its tasks; empty where the environment has none."""
        told = set(mapping(self.figures.get("by_task_type")))
        return (told or {e.task_type for e in self.episodes}) - {"all"}

    def mean_steps(self) -> float | None:
        """Agent steps per episode."""
        told = self.figure("steps")
        if told is not None or not self.episodes:
            return told
        return sum(e.steps for e in self.episodes) / len(self.episodes)


@dataclass
class Comparison:
    """A paired test of two players on the same tasks, as ``results.json`` has it.

    Args:
        run: label of its run.
        a, b: names of the policies.
        figures: what the test gave.
    """

    run: str
    a: str
    b: str
    figures: dict[str, Any]


@dataclass
class Material:
    """Everything that was read.

    Args:
        training: training runs, in the order given.
        players: of evaluations and collections.
        comparisons: paired tests.
        notes: what was skipped, cut or missing, in words.
    """

    training: list[TrainingRun] = field(default_factory=list)
    players: list[Player] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
