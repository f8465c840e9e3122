"""From a teacher's folder to a student's: choose, cut, write, report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torchtune.modules import TransformerDecoder

from sad_components.models import from_pretrained
from sad_components.models.checkpoint import load_hf_folder
from sad_components.models.families import build_decoder, family_of_config
from sad_components.pruning.apply import pruned, save
from sad_components.pruning.depth import (
    BY_DATA,
    BY_PLACE,
    Depth,
    layers_by_influence,
    layers_by_influence_again,
    layers_by_kl,
    layers_by_place,
)
from sad_components.pruning.importance import Importance, Rows, measure
from sad_components.pruning.plan import make_plan
from sad_components.pruning.report import make_report
from sad_components.pruning.shapes import Sizes, shape_of, student_shape
from sad_components.training.report import versions

#: The report beside the student's weights.
REPORT_FILE = "pruning.json"


def prune(
    teacher_dir: str | Path,
    out_dir: str | Path | None,
    sizes: Sizes,
    *,
    depth: str = "influence",
    rows: Rows | Callable[[], Rows] | None = None,
    device: str | torch.device = "cpu",
    notes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a student cut from a teacher, all its weights the teacher's, and its report.

    Importances are measured in fp32, once, on the whole teacher; weights keep the dtype in which
    they are stored. The vocabulary stays.

    Args:
        teacher_dir: folder in Hugging Face format.
        out_dir: the folder to make, with ``pruning.json`` in it; None: nothing is written.
        sizes: of the student.
        depth: how layers are chosen: one of :data:`~sad_components.pruning.depth.BY_PLACE` or
            :data:`~sad_components.pruning.depth.BY_DATA`.
        rows: what to measure on, or what makes it (asked once sizes are known to fit), where
            :func:`needs_rows` says so.
        device: that the teacher runs on.
        notes: further entries of the report.

    Returns:
        The report: see :func:`~sad_components.pruning.report.make_report`.

    Raises:
        ValueError: an unreadable, quantised or unknown teacher, impossible sizes, no rows where
            they are needed, or ``out_dir`` exists.
    """
    if depth not in (*BY_PLACE, *BY_DATA):
        raise ValueError(f"depth must be one of {(*BY_PLACE, *BY_DATA)}; got {depth!r}")
    _check_new(out_dir)
    checkpoint = load_hf_folder(teacher_dir)
    family = family_of_config(checkpoint.config)
    with torch.device("meta"):
        teacher = shape_of(build_decoder(checkpoint.config))
    shape = student_shape(teacher, sizes, family)
    how = depth if shape.layers < teacher.layers else "even"
    importance = model = None
    if needs_rows(sizes, depth):
        if rows is None:
            raise ValueError("importance is measured on data: pass rows, or choose layers by place")
        rows = rows if isinstance(rows, Rows) else rows()
        model = from_pretrained(teacher_dir, dtype=torch.float32, device=device)
        importance = measure(model, rows)
    if how in BY_PLACE:
        layers = layers_by_place(how, teacher.layers, shape.layers)
    else:
        layers = _layers_by_data(how, model, rows, importance, shape.layers)
    plan = make_plan(teacher, shape, layers, importance)
    student = pruned(checkpoint, plan)
    report = make_report(plan, how, importance, rows, checkpoint, student)
    report |= {"teacher": str(teacher_dir), "versions": versions(), **(notes or {})}
    if out_dir is not None:
        folder = save(student, teacher_dir, out_dir)
        text = json.dumps(report, indent=1) + "\n"
        (folder / REPORT_FILE).write_text(text, encoding="utf-8")
    return report


def needs_rows(sizes: Sizes, depth: str) -> bool:
    """Whether something is chosen by importance: a width, or layers by a criterion on data."""
    widths = (sizes.heads, sizes.kv_heads, sizes.ffn, sizes.width)
    return any(size is not None for size in widths) or (
        sizes.layers is not None and depth in BY_DATA
    )


def _check_new(out_dir: str | Path | None) -> None:
    if out_dir is not None and Path(out_dir).exists():
        raise ValueError(f"{out_dir} exists: choose another folder for the student, or remove it")


def _layers_by_data(
    how: str, model: TransformerDecoder, rows: Rows, importance: Importance, num_layers: int
) -> Depth:
    if how == "kl":
        return layers_by_kl(model, rows, num_layers)
    if how == "influence-again":
        return layers_by_influence_again(model, rows, num_layers)
    return layers_by_influence(importance.influence.tolist(), num_layers)
