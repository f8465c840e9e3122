"""Reads the output folders of the recipes, whatever state they are in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sad_components.report.reading import (
    Unreadable,
    count,
    dig,
    mapping,
    number,
    read_lines,
    read_object,
)
from sad_components.report.runs import (
    Comparison,
    Curve,
    Material,
    PlayedEpisode,
    Player,
    TrainingRun,
)
from sad_components.report.text import one_line

#: What a bound leaves out is said in the report.
MAX_METRICS = 200
MAX_POINTS = 1_000_000
MAX_POLICIES = 24
MAX_EPISODES = 100_000

_HELDOUT = "heldout_"
_JOURNAL = ".journal"
_TRAINING = ("metrics.jsonl", "summary.json")
_RESULTS = "results.json"


def load(paths: Sequence[str | Path]) -> Material:
    """Everything readable in the given runs.

    Args:
        paths: folders of runs, or JSONL files of collected trajectories.

    Returns:
        What was found; its notes name what was skipped and why.

    Raises:
        ValueError: a path that does not exist, or nothing readable in any of them.
    """
    places = [Path(path) for path in paths]
    for place in places:
        if not place.exists():
            raise ValueError(f"{place} does not exist: a RUN is the output folder of a recipe")
    material = Material()
    for place, label in zip(places, _labels(places)):
        material.notes += [f"{label}: {note}" for note in _load_run(place, label, material)]
    if not material.training and not material.players:
        raise ValueError("nothing to report: " + "; ".join(material.notes))
    _name_players(material.players)
    return material


def _labels(places: Sequence[Path]) -> list[str]:
    """Short names of the runs, no two alike."""
    names = [one_line(place.resolve().name) for place in places]
    twice = {name for name, times in Counter(names).items() if times > 1}
    longer = [
        one_line("/".join(place.resolve().parts[-2:])) if name in twice else name
        for name, place in zip(names, places)
    ]
    seen: Counter[str] = Counter()
    out = []
    for name in longer:
        seen[name] += 1
        out.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return out


def _name_players(players: Sequence[Player]) -> None:
    """Labels: the policy's name alone where no other run has one of that name."""
    names = Counter(one_line(player.name) for player in players)
    for player in players:
        name = one_line(player.name)
        player.label = name if names[name] == 1 else f"{player.run} / {name}"


def _load_run(place: Path, label: str, material: Material) -> Iterator[str]:
    """Adds what ``place`` holds to ``material``; yields notes."""
    found = False
    if place.is_file():
        journals = [place.with_name(place.name + _JOURNAL)]
        journals = [journal for journal in journals if journal.is_file()]
    else:
        journals = sorted(place.glob(f"*.jsonl{_JOURNAL}"))
        if any((place / name).is_file() for name in _TRAINING):
            found = True
            yield from _load_training(place, label, material)
        if (place / _RESULTS).is_file():
            found = True
            yield from _load_evaluation(place, label, material)
    for journal in journals:
        found = True
        yield from _load_collection(journal, label, material)
    if not found:
        yield f"skipped, {_why_nothing(place)}"


def _why_nothing(place: Path) -> str:
    if place.is_file():
        return f"a file without {place.name}{_JOURNAL} beside it is no collection"
    wanted = (*_TRAINING, _RESULTS)
    inner = sorted(p for name in wanted for p in place.glob(f"*/{name}"))
    hint = f"; {inner[0].parent} is one, though" if inner else ""
    return f"no run: it holds none of {', '.join(wanted)}, *.jsonl{_JOURNAL}{hint}"


def _load_training(place: Path, label: str, material: Material) -> Iterator[str]:
    run = TrainingRun(label, place)
    try:
        run.summary = read_object(place / "summary.json")
    except Unreadable as error:
        missing = not (place / "summary.json").exists()
        yield "not finished: it has no summary.json yet" if missing else f"{error}"
    if (place / "metrics.jsonl").is_file():
        yield from _read_metrics(place / "metrics.jsonl", run)
    else:
        yield "no training curves: it has no metrics.jsonl"
    if run.summary or run.curves or run.heldout:
        material.training.append(run)
    else:
        yield "skipped, neither metrics nor a summary can be read"


def _read_metrics(path: Path, run: TrainingRun) -> Iterator[str]:
    problems: Counter[str] = Counter()
    gaps = points = 0
    for row in read_lines(path, problems):
        step = number(row.get("step"))
        if step is None:
            problems["without a step"] += 1
            continue
        for name, value in row.items():
            heldout = name.startswith(_HELDOUT)
            curves = run.heldout if heldout else run.curves
            if name == "step" or isinstance(value, list | dict | str | bool):
                continue
            if len(curves) >= MAX_METRICS and name.removeprefix(_HELDOUT) not in curves:
                problems[f"with a metric beyond the first {MAX_METRICS}"] += 1
                continue
            shown = number(value)
            gaps += shown is None
            points += 1
            curve = curves.setdefault(name.removeprefix(_HELDOUT) if heldout else name, Curve())
            curve.add(step, float("nan") if shown is None else shown)
        if points >= MAX_POINTS:
            yield f"metrics.jsonl: only the first {points:,} values are shown"
            break
    yield from _skipped(path, problems)
    if gaps:
        yield f"metrics.jsonl: {gaps} values are no finite numbers and are shown as gaps"


def _load_evaluation(place: Path, label: str, material: Material) -> Iterator[str]:
    try:
        results = read_object(place / _RESULTS)
    except Unreadable as error:
        yield f"skipped, {error}"
        return
    policies = mapping(results.get("policies"))
    if not policies:
        yield f"skipped, {_RESULTS} names no policies"
        return
    if len(policies) > MAX_POLICIES:
        yield f"only the first {MAX_POLICIES} of {len(policies)} policies are shown"
    environment = one_line(dig(results, "environment", "name") or "unknown")
    for name in list(policies)[:MAX_POLICIES]:
        player = Player(one_line(name), name, label, environment, mapping(policies[name]))
        if _is_plain(name):
            yield from _read_episodes(place / name / "episodes.jsonl", player)
            transcripts = place / name / "trajectories.jsonl"
            player.transcripts = transcripts if transcripts.is_file() else None
        else:
            yield f"policy {one_line(name)!r} is no folder name: its episodes are not read"
        material.players.append(player)
    told = results.get("comparisons")
    for each in told if isinstance(told, list) else []:
        a, b = dig(each, "a"), dig(each, "b")
        if isinstance(a, str) and isinstance(b, str):
            material.comparisons.append(Comparison(label, a, b, each))


def _is_plain(name: str) -> bool:
    """Whether a name from a file may be used as one of a folder's own entries."""
    return name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"} and len(name) < 200


def _read_episodes(path: Path, player: Player) -> Iterator[str]:
    if not path.is_file():
        yield f"no episodes of {one_line(player.name)!r}: there is no {path.name}"
        return
    problems: Counter[str] = Counter()
    player.episodes = list(_episodes(read_lines(path, problems), problems))
    yield from _skipped(path, problems)


def _episodes(rows: Iterator[dict[str, Any]], problems: Counter[str]) -> Iterator[PlayedEpisode]:
    for read, row in enumerate(rows):
        if read >= MAX_EPISODES:
            problems[f"beyond the first {MAX_EPISODES:,}"] += 1
            return
        task, seed, steps = row.get("task"), count(row.get("seed", 0)), count(row.get("steps"))
        if not isinstance(task, str) or seed is None or steps is None:
            problems["without task, seed or steps"] += 1
            continue
        actions = row.get("actions")
        is_list = isinstance(actions, list) and all(isinstance(a, str) for a in actions)
        yield PlayedEpisode(
            str(row.get("id", "")),
            task,
            seed,
            row.get("won") is True,
            steps,
            str(row.get("task_type") or "all"),
            actions if is_list else None,
            str(row["failure"]) if row.get("failure") else None,
        )


def _load_collection(journal: Path, label: str, material: Material) -> Iterator[str]:
    problems: Counter[str] = Counter()
    rows = read_lines(journal, problems)
    settings = dig(next(rows, {}), "settings")
    policy = dig(settings, "policy")
    told = dig(policy, "name") or str(dig(policy, "_component_") or "").rpartition(".")[2]
    environment = dig(settings, "environment")
    place = environment[0] if isinstance(environment, list) and environment else "unknown"
    trajectories = journal.with_name(journal.name.removesuffix(_JOURNAL))
    player = Player(
        "",
        str(told or trajectories.stem),
        f"{label} ({one_line(trajectories.name)})",
        one_line(place),
    )
    player.episodes = list(_episodes(rows, problems))
    player.transcripts = trajectories if trajectories.is_file() else None
    yield from _skipped(journal, problems)
    if player.episodes:
        material.players.append(player)
    else:
        yield f"skipped, {journal.name} holds no episode"


def _skipped(path: Path, problems: Counter[str]) -> Iterator[str]:
    for problem, times in problems.items():
        lines = "1 line" if times == 1 else f"{times:,} lines"
        yield f"{path.name}: {lines} skipped ({problem})"
