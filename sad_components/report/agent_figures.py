"""Figures of players: success, steps, reasoning, latency, and what compression costs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.axes import Axes

from sad_components.evaluation.statistics import wilson_interval
from sad_components.report.pairs import Retention
from sad_components.report.runs import Player
from sad_components.report.style import INK, MUTED, PAPER, Picture, colour, marker, picture
from sad_components.report.text import one_line
from sad_components.report.training_figures import legend

#: Task types in one figure; the rest are in the table.
MAX_TYPES = 12


def success_pictures(players: Sequence[Player]) -> list[Picture]:
    """Success by task type with 95 % Wilson intervals, one picture for each environment."""
    shown: dict[str, list[tuple[int, Player]]] = {}
    for index, player in enumerate(players):
        if player.won_of() is not None:
            shown.setdefault(player.environment, []).append((index, player))
    return [_success_picture(place, own, len(shown)) for place, own in shown.items()]


def _success_picture(place: str, shown: Sequence[tuple[int, Player]], places: int) -> Picture:
    types = sorted({t for _, player in shown for t in player.task_types()})[:MAX_TYPES]
    rows = {
        name: [(i, p.label, *told) for i, p in shown if (told := p.won_of(name)) is not None]
        for name in (None, *types)
    }
    parts = [f"{label} won {won} of {begun}" for _, label, won, begun in rows[None]]
    slug = re.sub(r"[^A-Za-z0-9]+", "_", place)[:40]
    return picture(
        "success_by_task_type" + (f"_{slug}" if places > 1 else ""),
        "Success by task type" if places == 1 else f"Success, {one_line(place, 24)}",
        f"Share of episodes won, overall: {'; '.join(parts)}. The table has every task type.",
        partial(_success, rows=rows),
        caption="Whiskers are 95 % Wilson intervals.",
        height=1.1 + 0.18 * len(shown) + sum(0.25 + 0.16 * len(row) for row in rows.values()),
    )


def _success(axes: Axes, *, rows: Mapping[str | None, Sequence[tuple[int, str, int, int]]]) -> None:
    y = 0.0
    for task_type, row in rows.items():
        name = "all tasks" if task_type is None else one_line(task_type, 40).replace("_", " ")
        weight = "bold" if task_type is None else "normal"
        axes.text(0.0, y, name, fontsize=8.5, fontweight=weight, va="center")
        for index, label, won, begun in row:
            y += 1
            low, high = wilson_interval(won, begun)
            axes.plot([low, high], [y, y], color=colour(index), alpha=0.45, linewidth=4)
            axes.plot(
                won / begun if begun else 0.0,
                y,
                marker(index),
                color=colour(index),
                markersize=6,
                clip_on=False,
                label=label if task_type is None else None,
            )
            axes.text(1.04, y, f"{won}/{begun}", fontsize=7.5, color=MUTED, va="center")
        y += 1.5
    axes.set_ylim(y - 0.7, -0.9)
    axes.set_xlim(0.0, 1.0)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.tick_params(left=False, labelleft=False)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    legend(axes)


def steps_pictures(players: Sequence[Player]) -> list[Picture]:
    """Steps per episode: every episode as a point, and the share won within so many steps."""
    shown = [(i, p) for i, p in enumerate(players) if p.episodes]
    if not shown:
        return []
    means = [
        f"{p.label} {sum(e.steps for e in p.episodes) / len(p.episodes):.1f}" for _, p in shown
    ]
    most = max(e.steps for _, p in shown for e in p.episodes)
    won = [f"{p.label} {sum(e.won for e in p.episodes)} of {len(p.episodes)}" for _, p in shown]
    return [
        picture(
            "steps_per_episode",
            "Steps per episode",
            f"Distribution of agent steps per episode; means: {'; '.join(means)}.",
            partial(_steps, shown=shown),
            caption="A point is an episode: filled if won, hollow if lost. The bar is the mean.",
            height=1.0 + 0.62 * len(shown),
        ),
        picture(
            "won_within_steps",
            "Won within so many steps",
            f"Share of episodes won within k agent steps; after {most}: {'; '.join(won)}.",
            partial(_within, shown=shown, most=most),
        ),
    ]


def _steps(axes: Axes, *, shown: Sequence[tuple[int, Player]]) -> None:
    for row, (index, player) in enumerate(shown):
        stacked: dict[int, int] = {}
        episodes = player.episodes[:: -(-len(player.episodes) // 400)]
        for won in (True, False):
            xs, ys = [], []
            for episode in (e for e in episodes if e.won is won):
                level = stacked[episode.steps] = stacked.get(episode.steps, 0) + 1
                xs.append(episode.steps)
                ys.append(row + 0.32 * ((level % 2) * 2 - 1) * min(1.0, (level // 2) / 6))
            axes.plot(
                xs,
                ys,
                marker(index),
                markersize=4,
                alpha=0.8,
                markeredgecolor=colour(index),
                color=colour(index) if won else PAPER,
            )
        mean = sum(e.steps for e in player.episodes) / len(player.episodes)
        axes.plot([mean, mean], [row - 0.36, row + 0.36], color=INK, linewidth=2)
        axes.text(mean, row - 0.44, f"{mean:.1f}", fontsize=8, ha="center", va="bottom")
    axes.set_yticks(range(len(shown)), [one_line(p.label, 22) for _, p in shown])
    axes.set_ylim(len(shown) - 0.4, -0.75)
    axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("agent steps")


def _within(axes: Axes, *, shown: Sequence[tuple[int, Player]], most: int) -> None:
    for index, player in shown:
        won = sorted(e.steps for e in player.episodes if e.won)
        xs, ys = [0, *won, most], [n / len(player.episodes) for n in range(len(won) + 1)]
        axes.step(xs, [*ys, ys[-1]], where="post", color=colour(index), label=player.label)
        axes.plot(most, ys[-1], marker(index), color=colour(index))
    axes.set_ylim(-0.02, 1.04)
    axes.set_xlim(left=0)
    axes.set_yticks([0, 0.5, 1.0], ["0 %", "50 %", "100 %"])
    axes.set_xlabel("agent steps")
    axes.set_ylabel("episodes won")
    legend(axes)


#: Name, path in the results, title, unit.
_BARS = (
    ("reasoning_length", "Reasoning length", "per step"),
    ("thoughts", "Thoughts per episode", ""),
    ("seconds_per_step", "Seconds per step", "wall clock"),
    ("tokens_per_s", "Tokens per second", "agent's tokens"),
)


#: Where 0 is a measurement; elsewhere it says that nobody counted.
_MAY_BE_ZERO = ("reasoning_length", "thoughts")


def bar_pictures(players: Sequence[Player]) -> list[Picture]:
    """Reasoning length, thoughts, and speed of every player that has a figure above 0."""
    pictures = []
    units = {str(p.figures.get("reasoning_unit")) for p in players if p.figures}
    for name, title, unit in _BARS:
        bars = [
            (
                index,
                _with_unit(player, units) if name == "reasoning_length" else player.label,
                value,
            )
            for index, player in enumerate(players)
            if (value := player.figure(name)) is not None and (value or name in _MAY_BE_ZERO)
        ]
        if not any(value for *_, value in bars):
            continue
        if name == "reasoning_length" and len(units) == 1:
            unit = f"{one_line(min(units), 24)} {unit}"
        alt = f"{title}: {'; '.join(f'{label} {value:.3g}' for _, label, value in bars)}."
        drawn = partial(_bars, bars=bars, unit=unit)
        pictures.append(picture(name, title, alt, drawn, height=0.85 + 0.42 * len(bars)))
    return pictures


def _with_unit(player: Player, units: set[str]) -> str:
    """The player's label, with its unit of reasoning length where players differ in it."""
    unit = one_line(player.figures.get("reasoning_unit", "?"), 12)
    return player.label if len(units) == 1 else f"{player.label} ({unit})"


def _bars(axes: Axes, *, bars: Sequence[tuple[int, str, float]], unit: str) -> None:
    for row, (index, _, value) in enumerate(bars):
        axes.barh(row, value, height=0.6, color=colour(index))
        axes.text(value, row, f"  {value:.3g}", va="center", fontsize=8.5)
    axes.set_yticks(range(len(bars)), [one_line(label, 22) for _, label, _ in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, 1.18 * max(value for *_, value in bars))
    axes.grid(axis="y", visible=False)
    axes.tick_params(left=False)
    axes.set_xlabel(unit)


def retention_picture(points: Sequence[Retention]) -> Picture | None:
    """The paper's scaling figure: what is kept, against how many times smaller the student is."""
    if not points:
        return None
    parts = [
        f"{p.label} keeps {p.kept:.0%} of {p.teacher}'s {p.measure} at 1/{p.compression:.3g}"
        for p in points
    ]
    return picture(
        "retention",
        "Retention against compression",
        f"{'; '.join(parts)}.",
        partial(_retention, points=points),
        caption=(
            "Student over teacher; the dashed line is the teacher. Whiskers are the student's 95 % "
            "Wilson interval over the teacher's rate, itself taken as exact."
        ),
        height=3.4,
    )


def _retention(axes: Axes, *, points: Sequence[Retention]) -> None:
    measures = sorted({p.measure for p in points})
    for index, point in enumerate(points):
        hue = colour(index)
        shape = marker(measures.index(point.measure))
        if point.low is not None and point.high is not None:
            x = [point.compression, point.compression]
            axes.plot(x, [point.low, point.high], color=hue, alpha=0.45, linewidth=4)
        name = f"{one_line(point.label, 30)}: {point.measure}"
        axes.plot(point.compression, point.kept, shape, color=hue, markersize=7, label=name)
    axes.axhline(1.0, color=MUTED, linestyle="--", linewidth=1)
    axes.set_xscale("log", base=2)
    largest = max(2.0, *(p.compression for p in points))
    axes.set_xlim(min(0.9, *(0.9 * p.compression for p in points)), 1.3 * largest)
    axes.set_ylim(0, 1.1 * max(1.0, *(p.high or p.kept for p in points)))
    ticks = sorted({1.0, *(p.compression for p in points)})
    axes.set_xticks(ticks[:8], [f"{t:.3g}×" for t in ticks[:8]])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("times fewer parameters than the teacher")
    axes.set_ylabel("kept of the teacher")
    legend(axes, least=1)
