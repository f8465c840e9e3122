"""The report's tables: text cells, a dash where a run has no figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sad_components.evaluation.statistics import wilson_interval
from sad_components.report.pairs import Retention
from sad_components.report.reading import count, dig, mapping, number
from sad_components.report.runs import Comparison, Player, TrainingRun
from sad_components.report.text import one_line

DASH = "–"
#: Task types in a table.
MAX_TYPES = 100


@dataclass
class Table:
    """Rows of text.

    Args:
        caption: what it holds.
        head: headings; the first column names the rows.
        rows: as wide as ``head``.
        note: how it is to be read; may be empty.
    """

    caption: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


def cell(value: Any, form: str = "{:.3f}") -> str:
    """A number as text; a dash if it is none."""
    found = number(value)
    return DASH if found is None else form.format(found)


def percent(value: Any) -> str:
    """A share as a percentage."""
    return cell(value, "{:.1%}")


def with_interval(won: int, begun: int) -> str:
    """A share with its 95 % Wilson interval."""
    if not begun:
        return DASH
    low, high = wilson_interval(won, begun)
    return f"{won / begun:.1%} [{low:.1%}, {high:.1%}]"


def millions(value: Any) -> str:
    """A number of parameters, to three digits: ``134M``."""
    found = number(value)
    if found is None:
        return DASH
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if found >= size:
            return f"{found / size:.3g}{unit}"
    return f"{found:.0f}"


def runs_table(runs: Sequence[TrainingRun]) -> Table:
    """What was trained, on what."""
    rows = []
    for run in runs:
        mine, theirs = run.parameters("student"), run.parameters("teacher")
        tokens = mapping(dig(run.summary, "data", "tokens"))
        finished = one_line(run.summary.get("finished", "not finished"), 16)
        rows.append(
            [
                run.label,
                millions(mine),
                millions(theirs),
                f"{theirs / mine:.3g}×" if mine and theirs else DASH,
                cell(run.summary.get("steps"), "{:,.0f}"),
                cell(dig(run.summary, "data", "kept"), "{:,.0f}"),
                *(cell(tokens.get(kind), "{:,.0f}") for kind in ("reason", "act")),
                one_line(run.summary.get("dtype", DASH)),
                cell(run.summary.get("seed"), "{:.0f}"),
                finished.partition("T")[0],
            ]
        )
    head = ["run", "student", "teacher", "compression", "steps", "trajectories"]
    head += ["REASON tokens", "ACT tokens", "dtype", "seed", "finished"]
    torches = {str(dig(run.summary, "versions", "torch")) for run in runs if run.summary}
    note = f"Student and teacher in parameters. torch {one_line(', '.join(sorted(torches)))}."
    return Table("Training runs", head, rows, note)


_SCORES: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("kl_reason", "KL reason", cell),
    ("kl_act", "KL act", cell),
    ("ce_reason", "CE reason", cell),
    ("ce_act", "CE act", cell),
    ("top1_agreement", "first choice agrees", percent),
    ("action_match", "action match", percent),
    ("entropy_reason", "entropy reason", cell),
    ("entropy_act", "entropy act", cell),
)


def heldout_table(runs: Sequence[TrainingRun]) -> Table | None:
    """Held-out scores before and after training, and the teacher's own; None without any."""
    rows: list[list[str]] = []
    actions: set[int] = set()
    for run in runs:
        named = (("before", "student before"), ("after", "student after"), ("teacher", "teacher"))
        for when, name in named:
            scores = run.scores(when)
            if scores:
                rows.append([f"{run.label}: {name}", *(f(scores.get(k)) for k, _, f in _SCORES)])
                found = count(scores.get("actions"))
                actions |= set() if found is None else {found}
    if not rows:
        return None
    note = "KL, CE and the teacher's entropy in nats per token; teacher-forced."
    if actions:
        note += f" Action match over {' / '.join(f'{a:,}' for a in sorted(actions))} actions."
    return Table("Held-out trajectories", ["model", *(h for _, h, _ in _SCORES)], rows, note)


def speed_table(runs: Sequence[TrainingRun]) -> Table | None:
    """Throughput of the runs that have finished; None if none has."""
    rows = []
    for run in runs:
        told = mapping(run.summary.get("throughput"))
        if told:
            rows.append(
                [
                    run.label,
                    cell(told.get("tokens_per_s"), "{:,.0f}"),
                    cell(told.get("supervised_tokens_per_s"), "{:,.0f}"),
                    cell(told.get("tokens"), "{:,.0f}"),
                    cell(told.get("train_seconds"), "{:,.0f}"),
                    cell(told.get("peak_memory_mb"), "{:,.0f}"),
                    cell(run.summary.get("world_size"), "{:.0f}"),
                ]
            )
    head = ["run", "tokens/s", "supervised tokens/s", "tokens", "training s", "peak MB"]
    note = "Tokens of all processes, memory of one; evaluation and saving left out."
    return Table("Training speed", [*head, "processes"], rows, note) if rows else None


def players_table(players: Sequence[Player]) -> Table:
    """The paper's four figures, and step accuracy."""
    rows = []
    for player in players:
        won = player.won_of()
        rows.append(
            [
                player.label,
                player.environment,
                millions(player.parameters),
                with_interval(*won) if won else DASH,
                cell(player.mean_steps(), "{:.1f}"),
                cell(player.figure("reasoning_length"), "{:.1f}"),
                percent(player.figure("heldout", "cot_exact")),
                cell(player.figure("heldout", "cot_f1"), "{:.2f}"),
                percent(player.figure("heldout", "step_accuracy")),
            ]
        )
    head = ["policy", "environment", "parameters", "success [95 %]", "steps per episode"]
    head += ["reasoning per step", "CoT match, exact", "CoT match, F1", "step accuracy"]
    units = {
        one_line(p.figures["reasoning_unit"]) for p in players if "reasoning_unit" in p.figures
    }
    note = "Greedy unless its config says otherwise. A failed episode counts as not won."
    if units:
        note += f" Reasoning in {' or '.join(sorted(units))}."
    return Table("Policies", head, rows, note)


def reliability_table(players: Sequence[Player]) -> Table:
    """How often a policy thinks, errs, and fails."""
    rows = []
    for player in players:
        told = mapping(player.figures.get("failed"))
        failed = sum(number(v) or 0 for v in told.values())
        if not player.figures:
            failed = sum(episode.failure is not None for episode in player.episodes)
        kinds = ", ".join(f"{one_line(k)} {cell(v, '{:.0f}')}" for k, v in [*told.items()][:6])
        rows.append(
            [
                player.label,
                cell(player.figure("thoughts"), "{:.1f}"),
                cell(player.figure("invalid_actions"), "{:.2f}"),
                cell(player.figure("parse_failures"), "{:.0f}"),
                cell(player.figure("truncated"), "{:.0f}"),
                cell(failed, "{:.0f}") + (f" ({kinds})" if kinds else ""),
            ]
        )
    head = ["policy", "thoughts per episode", "invalid actions per episode", "turns not parsed"]
    return Table("What goes wrong", [*head, "episodes out of steps", "episodes failed"], rows)


def types_tables(players: Sequence[Player]) -> list[Table]:
    """Success by task type, one table for each environment whose tasks have types."""
    out = []
    for place in dict.fromkeys(player.environment for player in players):
        own = [player for player in players if player.environment == place]
        types = sorted({t for player in own for t in player.task_types()})[:MAX_TYPES]
        rows = [
            [one_line(task_type, 60), *(_won(player.won_of(task_type)) for player in own)]
            for task_type in types
        ]
        if rows:
            head = ["task type", *(player.label for player in own)]
            caption = f"Success by task type, {one_line(place)}"
            out.append(Table(caption, head, rows, "Won of begun, with 95 % Wilson intervals."))
    return out


def _won(told: tuple[int, int] | None) -> str:
    if told is None:
        return DASH
    low, high = wilson_interval(*told)
    return f"{told[0]}/{told[1]} [{low:.0%}, {high:.0%}]"


def latency_table(players: Sequence[Player]) -> Table:
    """Agent steps per episode first, which is what the paper calls latency."""
    rows = []
    for player in players:
        tokens = player.figure("tokens_per_s")
        rows.append(
            [
                player.label,
                cell(player.mean_steps(), "{:.1f}"),
                cell(player.figure("steps_when_won"), "{:.1f}"),
                cell(player.figure("seconds_per_step"), "{:.4f}"),
                cell(tokens, "{:,.0f}") if tokens else DASH,
                cell(player.figure("episodes_per_s"), "{:.2f}"),
                cell(player.figure("seconds"), "{:,.1f}"),
            ]
        )
    head = ["policy", "steps/episode", "steps when won", "seconds/step", "tokens/s"]
    note = (
        "The paper's latency is agent steps per episode. Seconds depend on the machine and on how "
        "many episodes are played at once."
    )
    return Table("Latency", [*head, "episodes/s", "seconds in all"], rows, note)


def comparisons_table(comparisons: Sequence[Comparison]) -> Table | None:
    """Paired tests; None without any."""
    rows = []
    for each in comparisons:
        told = mapping(each.figures.get("success_difference"))
        difference = DASH
        if number(told.get("mean")) is not None:
            bounds = ", ".join(cell(told.get(k), "{:+.1%}") for k in ("low", "high"))
            difference = f"{cell(told['mean'], '{:+.1%}')} [{bounds}]"
        rows.append(
            [
                f"{one_line(each.a)} − {one_line(each.b)}",
                one_line(each.run),
                cell(each.figures.get("pairs"), "{:.0f}"),
                difference,
                cell(each.figures.get("only_a"), "{:.0f}"),
                cell(each.figures.get("only_b"), "{:.0f}"),
                cell(each.figures.get("mcnemar_p"), "{:.3g}"),
                cell(each.figures.get("first_divergent_step"), "{:.1f}"),
            ]
        )
    head = ["a − b", "run", "pairs", "difference in success [95 %]", "won by a only"]
    head += ["won by b only", "McNemar p", "first divergent step"]
    note = "On the same tasks and seeds: bootstrap over tasks, McNemar's exact test."
    return Table("Paired tests", head, rows, note) if rows else None


def retention_table(points: Sequence[Retention]) -> Table:
    """The figures behind the scaling figure."""
    rows = []
    for point in points:
        bounds = ""
        if point.low is not None and point.high is not None:
            bounds = f" [{point.low:.0%}, {point.high:.0%}]"
        rows.append(
            [
                point.label,
                point.teacher,
                point.measure,
                f"{point.compression:.3g}×",
                f"{point.kept:.1%}{bounds}",
            ]
        )
    head = ["student", "teacher", "measure", "fewer parameters", "kept of the teacher [95 %]"]
    return Table("Retention", head, rows)
