"""A policy takes over at every step of held-out trajectories (``docs/method.md``).

From the history of a teacher's or expert's trajectory up to step k the policy writes its own
reasoning and action. Cheaper than episodes, and each step counts, not only the last.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from sad_components.evaluation.heldout import normalise
from sad_components.evaluation.policies.base import EpisodeView, Policy, Turn
from sad_components.evaluation.turns import TurnReader
from sad_components.trajectory import Trajectory


@dataclass
class StepRecord:
    """What the policy wrote in one state.

    Args:
        trajectory: index of the trajectory.
        step: 1-based step within it.
        right: whether its action is among the acceptable ones.
        exact: whether its thought is the teacher's, blanks folded.
        f1: token F1 of its thought against the teacher's, in [0, 1].
        parsed: whether it wrote an action at all.
    """

    trajectory: int
    step: int
    right: bool
    exact: bool
    f1: float
    parsed: bool


def heldout_steps(
    policy: Policy, trajectories: Sequence[Trajectory], batch_size: int = 16, seed: int = 0
) -> list[StepRecord]:
    """One record for every agent turn of weight other than 0, in order.

    Right is an action of the turn's ``acceptable`` list; without a list only the turn's own.

    Args:
        policy: who takes over; one that asks the environment cannot (there is none).
        trajectories: held-out ones, of chat turns.
        batch_size: trajectories asked about at the same time.
        seed: of the policy's draws.

    Raises:
        ValueError: the policy needs an environment.
    """
    if policy.needs:
        raise ValueError(
            f"policy {policy.name!r} asks the environment for {', '.join(sorted(policy.needs))}, "
            "but held-out trajectories have none"
        )
    records: list[StepRecord] = []
    for start in range(0, len(trajectories), batch_size):
        chunk = list(enumerate(trajectories))[start : start + batch_size]
        records += _steps_of(policy, chunk, seed)
    return sorted(records, key=lambda r: (r.trajectory, r.step))


def _steps_of(
    policy: Policy, chunk: Sequence[tuple[int, Trajectory]], seed: int
) -> list[StepRecord]:
    records = []
    turns_of = {
        number: [i for i, m in enumerate(t.messages) if m.role == "assistant"]
        for number, t in chunk
    }
    for step in range(max(map(len, turns_of.values()), default=0)):
        asked = []
        for session, (number, trajectory) in enumerate(chunk):
            turns = turns_of[number]
            if step < len(turns) and trajectory.messages[turns[step]].is_learnt:
                asked.append((session, number, trajectory, turns[step]))
        views = [
            EpisodeView(
                session,
                trajectory.id,
                trajectory.format or "react",
                trajectory.messages[:index],
                random.Random(f"{seed}:{trajectory.id}:{step}"),
            )
            for session, number, trajectory, index in asked
        ]
        written = policy.act(views) if views else []
        for (_, number, trajectory, index), turn in zip(asked, written, strict=True):
            records.append(_record(trajectory, index, turn, number, step + 1))
    return records


def _record(trajectory: Trajectory, index: int, turn: Turn, number: int, step: int) -> StepRecord:
    reader = TurnReader(trajectory.format or "react")
    message = trajectory.messages[index]
    wanted, got = reader.read(message.text), reader.read(turn.message.text)
    acceptable = {normalise(a) for a in message.acceptable or [wanted.action]}
    return StepRecord(
        number,
        step,
        right=got.parsed and normalise(got.action) in acceptable,
        exact=got.reasoning.split() == wanted.reasoning.split(),
        f1=token_f1(got.reasoning, wanted.reasoning),
        parsed=got.parsed,
    )


def token_f1(text: str, reference: str) -> float:
    """Harmonic mean of the shares of words that two texts have in common (1 if both are empty).

    >>> round(token_f1("it may be there", "it is there"), 3)
    0.571
    """
    ours, theirs = text.split(), reference.split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def summarize_steps(records: Sequence[StepRecord]) -> dict[str, Any]:
    """Step accuracy, CoT match and first divergent step, plain JSON."""
    if not records:
        return {"steps": 0}
    first_wrong: dict[int, int] = {}
    for record in records:
        if not record.right:
            first_wrong.setdefault(record.trajectory, record.step)
    trajectories = len({r.trajectory for r in records})
    return {
        "steps": len(records),
        "step_accuracy": fmean(r.right for r in records),
        "cot_exact": fmean(r.exact for r in records),
        "cot_f1": fmean(r.f1 for r in records),
        "parse_failures": sum(not r.parsed for r in records),
        "trajectories": trajectories,
        "never_diverged": (trajectories - len(first_wrong)) / trajectories,
        "first_divergent_step": fmean(first_wrong.values()) if first_wrong else None,
    }
