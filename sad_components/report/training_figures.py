"""Figures of training runs: a panel for each metric and span kind, a line for each run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter

from sad_components.report.reading import mapping, number
from sad_components.report.runs import Curve, TrainingRun
from sad_components.report.style import Picture, colour, line_style, marker, picture
from sad_components.spans import SpanKind

#: Metric, span kind, title, unit; held-out points have the same name.
_PANELS: tuple[tuple[str, SpanKind | None, str, str], ...] = (
    ("kl_reason", SpanKind.REASON, "KL to the teacher", "nats/token"),
    ("kl_act", SpanKind.ACT, "KL to the teacher", "nats/token"),
    ("ce_reason", SpanKind.REASON, "Cross-entropy", "nats/token"),
    ("ce_act", SpanKind.ACT, "Cross-entropy", "nats/token"),
    ("agree_reason", SpanKind.REASON, "Agrees with the teacher", "share of tokens"),
    ("agree_act", SpanKind.ACT, "Agrees with the teacher", "share of tokens"),
    ("entropy_reason", SpanKind.REASON, "Teacher's entropy", "nats/token"),
    ("entropy_act", SpanKind.ACT, "Teacher's entropy", "nats/token"),
    ("loss", None, "Loss", "nats"),
    ("action_match", SpanKind.ACT, "Action match, held-out", "share of actions"),
    ("grad_norm", None, "Gradient norm", "before clipping"),
    ("lr", None, "Learning rate", ""),
    ("tokens_per_s", None, "Throughput", "tokens/s"),
    ("peak_memory_mb", None, "Peak memory", "MB"),
)
_NAMES = {name for name, *_ in _PANELS}
#: Points of a line; more are thinned out evenly.
MAX_DRAWN = 2000
#: A positive metric whose values span more than this factor has a logarithmic axis.
_LOG_FROM = 60


def training_pictures(runs: Sequence[TrainingRun]) -> list[Picture]:
    """One picture for each metric that some run has logged more than once."""
    pictures = []
    for name, kind, title, unit in _PANELS:
        chosen = [(index, run) for index, run in enumerate(runs) if _is_shown(run.curves.get(name))]
        heldout = [(i, r) for i, r in enumerate(runs) if _is_shown(r.heldout.get(name), 1)]
        if chosen or heldout:
            label = f"train_{name}"
            drawn = partial(_panel, runs=runs, name=name, unit=unit)
            alt = _alt(title, kind, [r for _, r in chosen or heldout], name)
            pictures.append(picture(label, title, alt, drawn, kind=kind))
    return pictures


def unknown_metrics(runs: Sequence[TrainingRun]) -> list[str]:
    """Names of logged metrics that no panel shows, but for speed in other units."""
    known = _NAMES | {"supervised_tokens_per_s"}
    logged = {name for run in runs for name in run.curves if not name.startswith("seconds")}
    return sorted(logged - known)


def step_pictures(runs: Sequence[TrainingRun]) -> list[Picture]:
    """KL per agent step, one picture for each span kind: after training, and before it, fainter."""
    pictures = []
    for kind in (SpanKind.REASON, SpanKind.ACT):
        lines = [
            (index, run.label, when, curve)
            for index, run in enumerate(runs)
            for when in ("before", "after")
            if (curve := kl_by_step(run, when, kind)).steps
        ]
        if lines:
            alt = _step_alt(kind, lines)
            name = f"kl_by_step_{kind.label}"
            drawn = partial(_step_panel, lines=lines)
            pictures.append(picture(name, "KL by agent step", alt, drawn, kind=kind))
    return pictures


def kl_by_step(run: TrainingRun, when: str, kind: SpanKind) -> Curve:
    """The run's held-out KL per agent step; empty where it was not written down."""
    rows = run.scores(when).get("kl_by_step")
    curve = Curve()
    for row in rows if isinstance(rows, list) else []:
        step, value = number(mapping(row).get("step")), number(mapping(row).get(kind.label))
        if step is not None and value is not None:
            curve.add(step, value)
    return curve


def _is_shown(curve: Curve | None, least: int = 2) -> bool:
    return curve is not None and sum(map(math.isfinite, curve.values)) >= least


def _panel(axes: Axes, *, runs: Sequence[TrainingRun], name: str, unit: str) -> None:
    values = []
    for index, run in enumerate(runs):
        curve, points = run.curves.get(name, Curve()), run.heldout.get(name, Curve())
        every = -(-len(curve.steps) // MAX_DRAWN) or 1
        hue = colour(index)
        if curve.steps:
            axes.plot(
                curve.steps[::every],
                curve.values[::every],
                line_style(index),
                color=hue,
                label=run.label,
            )
        if points.steps:
            axes.plot(
                points.steps,
                points.values,
                marker(index),
                color=hue,
                markeredgecolor=hue,
                linestyle=":",
                linewidth=1,
                label=f"{run.label}, held-out",
            )
        values += [v for v in curve.values + points.values if math.isfinite(v)]
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(unit)
    if name != "lr":
        scale_from_zero(axes, values, may_be_log=not unit.startswith("share"))
    legend(axes)


def _step_panel(axes: Axes, *, lines: Sequence[tuple[int, str, str, Curve]]) -> None:
    for index, label, when, curve in lines:
        style = "-" if when == "after" else ":"
        axes.plot(
            curve.steps,
            curve.values,
            style,
            marker=marker(index),
            markersize=4 if when == "after" else 2.5,
            alpha=1.0 if when == "after" else 0.7,
            color=colour(index),
            label=f"{label}, {when}",
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("agent step within the episode")
    axes.set_ylabel("nats/token")
    scale_from_zero(axes, [v for *_, curve in lines for v in curve.values])
    legend(axes)


def scale_from_zero(axes: Axes, values: Sequence[float], may_be_log: bool = True) -> None:
    """An axis that begins at 0; a logarithmic one where values span orders of magnitude."""
    least, most = min(values, default=0.0), max(values, default=0.0)
    if may_be_log and least > 0 and most / least > _LOG_FROM:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel(f"{axes.get_ylabel()}, logarithmic")
    elif least >= 0:
        axes.set_ylim(0, 1.08 * most or 1)


def legend(axes: Axes, least: int = 2) -> None:
    """A legend below the axes, if there are at least so many things to tell apart."""
    handles, labels = axes.get_legend_handles_labels()
    figure = axes.get_figure(root=True)
    if figure is not None and len(handles) >= least:
        columns = 1 if max(map(len, labels)) > 26 else 2
        figure.legend(handles, labels, loc="outside lower left", ncols=columns)


def _alt(title: str, kind: SpanKind | None, runs: Sequence[TrainingRun], name: str) -> str:
    """What a panel says, in words: first and last value of each run."""
    parts = []
    for run in runs:
        curve = run.curves.get(name) or run.heldout[name]
        finite = [(s, v) for s, v in zip(curve.steps, curve.values) if math.isfinite(v)]
        (s0, v0), (s1, v1) = finite[0], finite[-1]
        parts.append(f"{run.label} from {v0:.4g} at step {s0:g} to {v1:.4g} at step {s1:g}")
    about = f" on {kind.name} tokens" if kind else ""
    return f"{title}{about} over optimizer steps: {'; '.join(parts)}."


def _step_alt(kind: SpanKind, lines: Sequence[tuple[int, str, str, Curve]]) -> str:
    parts = [
        f"{label} {when}: {curve.values[0]:.3g} at step {curve.steps[0]:g}, "
        f"{curve.values[-1]:.3g} at step {curve.steps[-1]:g}"
        for _, label, when, curve in lines
    ]
    return f"KL to the teacher on {kind.name} tokens by agent step. {'; '.join(parts)}."
