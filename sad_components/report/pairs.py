"""Who is compared with whom, and what a student keeps of its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sad_components.evaluation.metrics import first_difference
from sad_components.evaluation.statistics import mcnemar_exact, paired_bootstrap, wilson_interval
from sad_components.report.reading import number
from sad_components.report.runs import Comparison, PlayedEpisode, Player, TrainingRun

#: What can come of a task that two have played, the most telling first.
OUTCOMES = ("only the teacher won", "only the student won", "neither won", "both won")


class Pair(NamedTuple):
    """One task played by a teacher and by a student.

    Args:
        teacher, student: the two episodes.
        diverged: the first step (1-based) at which they act differently; None if never, or if
            the actions of one are not known.
    """

    teacher: PlayedEpisode
    student: PlayedEpisode
    diverged: int | None

    @property
    def outcome(self) -> str:
        """Who won, in words."""
        if self.teacher.won:
            return OUTCOMES[3] if self.student.won else OUTCOMES[0]
        return OUTCOMES[1] if self.student.won else OUTCOMES[2]


class Duel(NamedTuple):
    """Two players on the tasks that both have played.

    Args:
        teacher, student: the players.
        pairs: common tasks, the most telling first.
    """

    teacher: Player
    student: Player
    pairs: list[Pair]


class Retention(NamedTuple):
    """How much of a teacher is left in a student.

    Args:
        label: the student.
        teacher: label of the teacher.
        measure: what is compared.
        compression: the teacher's parameters over the student's.
        kept: the student's figure over the teacher's.
        low, high: the student's 95 % Wilson interval over the teacher's rate, where there is one.
    """

    label: str
    teacher: str
    measure: str
    compression: float
    kept: float
    low: float | None = None
    high: float | None = None


def teacher_of(players: Sequence[Player], wanted: str | None = None) -> Player | None:
    """The player that others are compared with.

    The one of the ``wanted`` name or label; else one called teacher; else the largest model; else
    a scripted expert.

    Raises:
        ValueError: no player has the wanted name.
    """
    if wanted is not None:
        for player in players:
            if wanted in (player.label, player.name):
                return player
        names = ", ".join(player.label for player in players) or "none"
        raise ValueError(f"--teacher names a policy of the runs ({names}); got {wanted!r}")
    for name in ("teacher", "expert", "gold"):
        if name == "expert" and (largest := _largest(players)) is not None:
            return largest
        for player in players:
            if name in player.name.lower():
                return player
    return None


def _largest(players: Sequence[Player]) -> Player | None:
    sizes = sorted((p.parameters or 0, -i) for i, p in enumerate(players) if p.parameters)
    if len(sizes) < 2 or sizes[-1][0] == sizes[0][0]:
        return None
    return players[-sizes[-1][1]]


def duels(players: Sequence[Player], teacher: Player | None) -> list[Duel]:
    """The teacher against everybody who played some of its tasks in its environment."""
    if teacher is None:
        return []
    found = []
    for student in players:
        if student is teacher or student.environment != teacher.environment:
            continue
        theirs = {episode.job: episode for episode in teacher.episodes}
        pairs = [
            Pair(theirs[mine.job], mine, _diverged(theirs[mine.job], mine))
            for mine in student.episodes
            if mine.job in theirs
        ]
        if pairs:
            found.append(Duel(teacher, student, sorted(pairs, key=_interest)))
    return found


def _diverged(a: PlayedEpisode, b: PlayedEpisode) -> int | None:
    if a.actions is None or b.actions is None:
        return None
    return first_difference(a.actions, b.actions)


def _interest(pair: Pair) -> tuple[int, int, int]:
    """What one wants to see first: lost by the student alone, then a late divergence."""
    same = pair.diverged is None
    return OUTCOMES.index(pair.outcome), same, -(pair.diverged or 0)


def across_runs(found: Sequence[Duel], told: Sequence[Comparison]) -> list[Comparison]:
    """Paired tests of the duels that no ``results.json`` holds: their players are of two runs."""
    known = {(c.run, *sorted((c.a, c.b))) for c in told}
    out = []
    for teacher, student, pairs in found:
        names = sorted((teacher.name, student.name))
        if teacher.run == student.run and (teacher.run, *names) in known:
            continue
        t, s = [p.teacher.won for p in pairs], [p.student.won for p in pairs]
        only_t = sum(x and not y for x, y in zip(t, s))
        only_s = sum(y and not x for x, y in zip(t, s))
        resamples = max(200, min(10_000, 1_000_000 // len(pairs)))
        figures = {
            "pairs": len(pairs),
            "only_a": only_s,
            "only_b": only_t,
            "mcnemar_p": mcnemar_exact(only_s, only_t),
            "success_difference": dict(
                zip(("mean", "low", "high"), paired_bootstrap(s, t, resamples=resamples))
            ),
        }
        run = teacher.run if teacher.run == student.run else "across runs"
        out.append(Comparison(run, student.label, teacher.label, figures))
    return out


def retention(
    players: Sequence[Player], teacher: Player | None, runs: Sequence[TrainingRun]
) -> list[Retention]:
    """A point for each student whose size and teacher are known.

    By success where both have played the same environment, else by step accuracy, else by the
    teacher-forced action match of the training run.
    """
    points = []
    for player in players:
        if teacher is None or player is teacher or player.environment != teacher.environment:
            continue
        if player.parameters and teacher.parameters:
            point = _kept_by(player, teacher, teacher.parameters / player.parameters)
            points += [point] if point else []
    for run in runs:
        mine, theirs = run.parameters("student"), run.parameters("teacher")
        after = number(run.scores("after").get("action_match"))
        limit = number(run.scores("teacher").get("action_match"))
        if mine and theirs and after is not None and limit:
            points.append(
                Retention(run.label, "its teacher", "action match", theirs / mine, after / limit)
            )
    return points


def _kept_by(student: Player, teacher: Player, compression: float) -> Retention | None:
    mine, theirs = student.won_of(), teacher.won_of()
    if mine and theirs and mine[1] and theirs[0]:
        rate = theirs[0] / theirs[1]
        low, high = wilson_interval(*mine)
        return Retention(
            student.label,
            teacher.label,
            "success",
            compression,
            mine[0] / mine[1] / rate,
            low / rate,
            high / rate,
        )
    accuracy = student.figure("heldout", "step_accuracy")
    limit = teacher.figure("heldout", "step_accuracy")
    if accuracy is None or not limit:
        return None
    return Retention(student.label, teacher.label, "step accuracy", compression, accuracy / limit)
