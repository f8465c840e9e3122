"""lm-eval on several students: its own result files, a table, and paired differences."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from sad_components._lm_eval_plugin import TASKS
from sad_components.evaluation.statistics import paired_bootstrap

#: Of a task's results: what is no figure.
_NO_FIGURES = ("alias", "sample_len", "sample_count", "name")


@dataclass
class Settings:
    """What all students are asked alike.

    Args:
        tasks: names of tasks, groups or tags, paths of YAML files, or mappings with a known name
            under ``task`` and what is to be changed in that task.
        include_path: folders with further task files.
        metadata: for tasks that read some: ``trajectories``, ``style``, ``questions``, ..
        num_fewshot: examples before each question; None: the task's own number.
        limit: documents of each task; None: all.
        batch_size: see ``SadLM``.
        device: ``cpu``, ``cuda``, ..
        apply_chat_template: whether questions are put as a conversation.
        bootstrap_iters: of lm-eval's standard errors.
        seed: of everything that lm-eval draws.
    """

    tasks: Sequence[str | Mapping[str, Any]]
    include_path: Sequence[str] = ()
    metadata: Mapping[str, Any] | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int | str = 1
    device: str = "cpu"
    apply_chat_template: bool = False
    bootstrap_iters: int = 1000
    seed: int = 0


def evaluate_student(
    model: str, arguments: Mapping[str, Any], settings: Settings, output_dir: str | Path
) -> tuple[dict[str, Any], Path]:
    """Runs the tasks on one student; lm-eval's results, and the file that holds them.

    Args:
        model: lm-eval's name of the kind of model: ``sad``, ``hf``, ..
        arguments: its ``model_args``; ``pretrained`` among them.
        settings: what is asked.
        output_dir: gets ``results_<date>.json`` and, a task, ``samples_<task>_<date>.jsonl``.

    Raises:
        ValueError: an unknown task, or what the model and the tasks raise.
        OSError: the results could not be written.
    """
    metadata = {**arguments, **(settings.metadata or {})}
    manager = TaskManager(include_path=[str(TASKS), *settings.include_path], metadata=metadata)
    tracker = EvaluationTracker(output_path=str(Path(output_dir) / "results.json"))
    results = simple_evaluate(
        model=model,
        model_args=dict(arguments),
        tasks=[whole_spec(manager, spec) for spec in settings.tasks],
        num_fewshot=settings.num_fewshot,
        batch_size=settings.batch_size,
        device=settings.device,
        limit=settings.limit,
        apply_chat_template=settings.apply_chat_template,
        bootstrap_iters=settings.bootstrap_iters,
        evaluation_tracker=tracker,
        task_manager=manager,
        random_seed=settings.seed,
        numpy_random_seed=settings.seed,
        torch_random_seed=settings.seed,
        fewshot_random_seed=settings.seed,
    )
    assert results is not None  # this is the only process
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    date = getattr(tracker, "date_id", None)
    written = Path(output_dir) / f"results_{date}.json"
    if not written.is_file():  # lm-eval logs why, and goes on
        raise OSError(
            f"lm-eval could not write {written}: is {output_dir} writable, the disk full?"
        )
    return {**results, "samples": samples}, written


def whole_spec(manager: TaskManager, spec: str | Mapping[str, Any]) -> str | dict[str, Any]:
    """A task as lm-eval's ``TaskManager`` takes it: a known task with changes becomes a whole one.

    Args:
        manager: knows the tasks.
        spec: a name or path, or a mapping with ``task``.

    Raises:
        ValueError: a task that is not known, or changes of a group.
    """
    if isinstance(spec, str):
        if spec not in manager.task_index and not Path(spec).is_file():
            raise ValueError(
                f"no task {spec!r}: `sad lm-eval ls tasks` lists them, include_path adds folders"
            )
        return spec
    name = spec.get("task")
    entry = manager.task_index.get(name) if isinstance(name, str) else None
    if entry is None or entry.yaml_path is None:
        raise ValueError(f"changes are of a known task, named under 'task'; got {name!r}")
    known = load_yaml(entry.yaml_path)
    if "task" not in known or not isinstance(known["task"], str):
        raise ValueError(f"{name} is a group: name the tasks that are to be changed")
    return {**known, **spec}


def figures_of(results: Mapping[str, Any]) -> Iterator[tuple[str, str, float, float | None]]:
    """(task, metric, value, standard error or None) of every figure, in order."""
    for task, own in results["results"].items():
        for key, value in own.items():
            metric, _, filter_name = key.partition(",")
            is_figure = isinstance(value, float | int) and not isinstance(value, bool)
            if metric in _NO_FIGURES or metric.endswith("_stderr") or not is_figure:
                continue
            error = own.get(f"{metric}_stderr,{filter_name}")
            label = metric if filter_name in ("", "none") else f"{metric} ({filter_name})"
            yield task, label, float(value), error if isinstance(error, float) else None


def format_students(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A table: a line for each figure, a column for each student, and paired differences.

    Differences are of each student to the first, over the same documents, with a 95 % bootstrap
    interval; only where a metric is a mean over documents.
    """
    names = list(results)
    values = {name: {(t, m): (v, e) for t, m, v, e in figures_of(results[name])} for name in names}
    rows = list(dict.fromkeys(key for own in values.values() for key in own))
    left = max(len(f"{task}  {metric}") for task, metric in rows) if rows else 0
    width = max(17, *(len(name) + 2 for name in names))
    lines = [" " * left + "".join(f"{name:>{width}}" for name in names)]
    for task, metric in rows:
        cells = (_cell(values[name].get((task, metric))) for name in names)
        lines.append(f"{f'{task}  {metric}':<{left}}" + "".join(f"{c:>{width}}" for c in cells))
    for other in names[1:]:
        for task, metric in rows:
            found = difference(results[other], results[names[0]], task, metric)
            if found is not None:
                pair = f"{task}  {metric}: {other} - {names[0]}"
                lines.append("{} = {:+.4f} [{:+.4f}, {:+.4f}]".format(pair, *found))
    return "\n".join(lines)


def difference(
    a: Mapping[str, Any], b: Mapping[str, Any], task: str, metric: str
) -> tuple[float, float, float] | None:
    """Mean of a - b over the documents of a task, and its interval; None if it is no such mean."""
    columns = []
    for results in (a, b):
        samples = results.get("samples", {}).get(task, [])
        own = {s["doc_id"]: s.get(metric) for s in samples}
        if not own or not all(isinstance(v, float | int) for v in own.values()):
            return None
        columns.append(own)
    if columns[0].keys() != columns[1].keys():
        return None
    keys = sorted(columns[0])
    return paired_bootstrap(*([float(own[key]) for key in keys] for own in columns))


def _cell(figure: tuple[float, float | None] | None) -> str:
    if figure is None:
        return "-"
    value, error = figure
    return f"{value:.4f}" + ("" if error is None else f" ±{error:.4f}")


def quiet() -> None:
    """Leaves out what lm-eval logs of every run, and keeps its warnings."""
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
