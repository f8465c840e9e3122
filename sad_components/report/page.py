"""The page: sections of cards, tables and figures, rendered into one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sad_components import __version__
from sad_components.report import agent_figures, pairs, tables, training_figures
from sad_components.report.episodes import MAX_PIECE, MAX_STEPS, SideBySide, side_by_side
from sad_components.report.reading import number
from sad_components.report.runs import Material, Player, TrainingRun
from sad_components.report.style import Picture
from sad_components.report.tables import Table
from sad_components.report.text import clean, one_line

#: Notes on one page.
MAX_NOTES = 100


@dataclass
class Card:
    """One figure to be seen at a glance.

    Args:
        label: whose.
        value: the figure.
        note: what it means.
        share: it as a share in [0, 100], for the bar; None without one.
    """

    label: str
    value: str
    note: str
    share: int | None = None


@dataclass
class Section:
    """A part of the page.

    Args:
        id: anchor.
        title: heading.
        lead: what is shown and how it is to be read.
        missing: what is not there, and how to get it.
        cards, tables, pictures: contents, in this order.
    """

    id: str
    title: str
    lead: str = ""
    missing: list[str] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)

    @property
    def is_filled(self) -> bool:
        """Whether there is more than a word on what is missing."""
        return bool(self.cards or self.tables or self.pictures)


@dataclass
class Report:
    """Everything that the page shows.

    Args:
        sections: in order.
        episodes: side by side.
        episodes_note: which ones these are, or why there are none.
        notes: what was skipped, cut or missing.
        runs: the paths as given.
    """

    sections: list[Section]
    episodes: list[SideBySide]
    episodes_note: str
    notes: list[str]
    runs: list[str]

    @property
    def pictures(self) -> list[Picture]:
        """All figures."""
        return [picture for section in self.sections for picture in section.pictures]


def build(
    material: Material, runs: Sequence[str], teacher: str | None = None, episodes: int = 6
) -> Report:
    """Draws the figures and fills the tables.

    Args:
        material: what was read.
        runs: the paths as given.
        teacher: name of the policy that others are compared with; None: see
            :func:`~sad_components.report.pairs.teacher_of`.
        episodes: most episodes side by side.

    Raises:
        ValueError: no policy is called ``teacher``.
    """
    reference = pairs.teacher_of(material.players, teacher)
    found = pairs.duels(material.players, reference)
    notes = list(material.notes)
    shown = side_by_side(found, episodes, notes)
    return Report(
        [
            _glance(material),
            _training(material.training),
            _by_step(material.training),
            _agents(material, found),
            _behaviour(material.players),
            _retention(material, reference),
        ],
        shown,
        _episodes_note(material.players, reference, found, shown),
        notes[:MAX_NOTES],
        [one_line(run, 120) for run in runs],
    )


def _glance(material: Material) -> Section:
    section = Section("glance", "At a glance")
    for player in material.players:
        won = player.won_of()
        if won and won[1]:
            interval = tables.with_interval(*won).partition(" ")[2]
            section.cards.append(
                Card(
                    player.label,
                    f"{won[0] / won[1]:.0%}",
                    f"episodes won in {player.environment}, {won[0]} of {won[1]} {interval}",
                    round(100 * won[0] / won[1]),
                )
            )
    for run in material.training:
        for name, what in (("kl_reason", "KL on REASON"), ("kl_act", "KL on ACT")):
            before, after = (number(run.scores(w).get(name)) for w in ("before", "after"))
            if after is not None:
                note = f"{what}, held-out, nats/token"
                note += f"; {before:.2f} before training" if before is not None else ""
                section.cards.append(Card(run.label, f"{after:.2f}", note))
    if not section.cards:
        section.missing.append("Neither episodes nor held-out scores in these runs.")
    return section


def _training(runs: Sequence[TrainingRun]) -> Section:
    section = Section(
        "training",
        "Training",
        "Lines are training steps, markers the held-out trajectories. KL is the forward KL at "
        "temperature 1, whatever the run's loss.",
    )
    if not runs:
        section.missing.append(
            "No training run was given: add the output_dir of recipes/structured_kd.py."
        )
        section.lead = ""
        return section
    scores, speed = tables.heldout_table(runs), tables.speed_table(runs)
    section.tables = [t for t in (scores, tables.runs_table(runs), speed) if t is not None]
    section.pictures = training_figures.training_pictures(runs)
    if scores is None:
        section.missing.append("No held-out scores: set heldout in the recipe's config.")
    if not section.pictures:
        section.missing.append("No training curves: metrics.jsonl holds fewer than two steps.")
    for run in runs:
        if run.summary and not run.scores("teacher"):
            section.missing.append(f"{run.label} has no teacher: no KL, no agreement.")
    if others := training_figures.unknown_metrics(runs):
        names = ", ".join(one_line(name) for name in others[:12])
        section.missing.append(f"Metrics without a figure of their own: {names}.")
    return section


def _by_step(runs: Sequence[TrainingRun]) -> Section:
    section = Section(
        "steps",
        "KL by agent step",
        "Where in an episode the student lags: mean KL to the teacher of each step's tokens on "
        "held-out trajectories. Late steps exist in long episodes only.",
    )
    section.pictures = training_figures.step_pictures(runs)
    if not section.pictures:
        section.lead = ""
        section.missing.append(
            "No KL by step: it needs a run of recipes/structured_kd.py with a teacher and held-out "
            "trajectories (runs of earlier versions did not write it down)."
        )
    return section


def _agents(material: Material, found: Sequence[pairs.Duel]) -> Section:
    section = Section("agents", "In the environment")
    players = material.players
    if not players:
        section.missing.append(
            "No rollouts: run recipes/evaluate_agent.py, and add its output_dir to the report."
        )
        return section
    comparisons = [*material.comparisons, *pairs.across_runs(found, material.comparisons)]
    parts = (
        tables.players_table(players),
        tables.reliability_table(players),
        tables.comparisons_table(comparisons),
        *tables.types_tables(players),
    )
    section.tables = [table for table in parts if table is not None]
    section.pictures = agent_figures.success_pictures(players)
    if not comparisons:
        section.missing.append("No paired tests: no two policies played the same tasks.")
    if not any(player.figure("heldout", "steps") for player in players):
        section.missing.append(
            "No step accuracy and no CoT match: set heldout in the config of evaluate_agent."
        )
    return section


def _behaviour(players: Sequence[Player]) -> Section:
    section = Section("behaviour", "Steps, reasoning, latency")
    if not players:
        section.missing.append("No rollouts, hence no steps, no reasoning length and no latency.")
        return section
    section.tables = [tables.latency_table(players)]
    section.pictures = [
        *agent_figures.steps_pictures(players),
        *agent_figures.bar_pictures(players),
    ]
    for player in players:
        if not player.episodes:
            section.missing.append(
                f"{player.label} has no episodes.jsonl: only its means are known."
            )
    return section


def _retention(material: Material, teacher: Player | None) -> Section:
    section = Section("retention", "Retention against compression")
    points = pairs.retention(material.players, teacher, material.training)
    picture = agent_figures.retention_picture(points)
    if picture:
        section.lead = (
            "What a student keeps of its teacher: success in the environment where both played, "
            "else step accuracy, else the teacher-forced action match, which says least."
        )
        section.pictures, section.tables = [picture], [tables.retention_table(points)]
    else:
        section.missing.append(
            "Not known: it needs a teacher and a student whose parameters are counted. Evaluate "
            "both as policies of recipes/evaluate_agent.py, or give a finished training run with "
            "held-out trajectories and a teacher whose own figure is above 0."
        )
    return section


def _episodes_note(
    players: Sequence[Player],
    teacher: Player | None,
    found: Sequence[pairs.Duel],
    shown: Sequence[SideBySide],
) -> str:
    if shown:
        total = sum(len(duel.pairs) for duel in found)
        return (
            f"{len(shown)} of {total} episodes that two policies played on the same task: first "
            "what the teacher won and the student lost, the latest divergence first. Shown are at "
            f"most {MAX_STEPS} steps, and {MAX_PIECE:,} characters of each piece."
        )
    if not players:
        return "No rollouts in these runs: run recipes/evaluate_agent.py with teacher and student."
    if teacher is None:
        names = ", ".join(player.label for player in players)
        return (
            f"None of the policies ({names}) is known to be the teacher: name one with --teacher, "
            "or evaluate a policy called teacher beside the student."
        )
    if not found:
        return f"Nobody else played the tasks of {teacher.label} in {teacher.environment}."
    return "Left out, as was asked for (--episodes 0)."


def render(report: Report) -> str:
    """The page as HTML: no script, no request, every text escaped."""
    environment = Environment(
        loader=PackageLoader("sad_components.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_cleaned,
    )
    css = environment.get_template("style.css.jinja").render()
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return environment.get_template("page.html.jinja").render(
        report=report,
        css=Markup(css),
        css_hash=f"sha256-{digest}",
        data_uri=_data_uri,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=__version__,
    )


def _cleaned(value: Any) -> Any:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
