"""What pruning kept, by which importances, and what it saved: as JSON and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sad_components.models.checkpoint import HFCheckpoint
from sad_components.models.widths import Unit
from sad_components.pruning.importance import Importance, Rows
from sad_components.pruning.plan import Plan

_DIGITS = 6
_SIZES = ("layers", "heads", "kv_heads", "head_dim", "ffn", "width")


def make_report(
    plan: Plan,
    how: str,
    importance: Importance | None,
    rows: Rows | None,
    teacher: HFCheckpoint,
    student: HFCheckpoint,
) -> dict[str, Any]:
    """The report as plain JSON values.

    Args:
        plan: what was kept.
        how: the way in which layers were chosen.
        importance: as measured; None where only places decided.
        rows: what it was measured on.
        teacher: before.
        student: after.
    """
    before, after = num_parameters(teacher), num_parameters(student)
    return {
        "shape": {"teacher": vars(plan.teacher), "student": vars(plan.student)},
        "parameters": {"teacher": before, "student": after, "compression": before / after},
        "layers": {
            "how": how if plan.depth.dropped else "all",
            "kept": plan.depth.layers,
            "dropped": [
                {"layer": layer, "score": None if score is None else _rounded(score)}
                for layer, score in plan.depth.dropped
            ],
        },
        "units": {unit.value: _unit(plan, unit, importance) for unit in plan.kept},
        "norm_scales": {name: _rounded(scale) for name, scale in plan.norm_scales.items()},
        "importance": importance and rows and _importance(importance, rows),
    }


def lines(report: dict[str, Any]) -> list[str]:
    """The report for the terminal."""
    shape, parameters = report["shape"], report["parameters"]
    out = [f"{'':<12}{'teacher':>14}{'student':>14}{'kept':>9}"]
    counts = [(name.replace("_", " "), *(shape[m][name] for m in shape)) for name in _SIZES]
    for name, before, after in [*counts, ("parameters", *list(parameters.values())[:2])]:
        out.append(f"{name:<12}{before:>14,}{after:>14,}{after / before:>9.1%}")
    out.append(f"compression: {parameters['compression']:.2f} times fewer parameters")
    layers = report["layers"]
    out.append(f"layers kept ({layers['how']}): {_listed(layers['kept'])}")
    if layers["dropped"]:
        gone = (_with_score(d["layer"], d["score"]) for d in layers["dropped"])
        out.append(f"layers dropped: {', '.join(gone)}")
    for name, unit in report["units"].items():
        out.append(
            f"{name.replace('_', ' ')}: those kept hold {unit['importance_kept']:.1%} of the "
            "importance"
        )
    measured = report["importance"]
    if measured:
        out.append(
            f"measured on {measured['positions']:,} positions ({measured['tokens']} tokens) of "
            f"{len(measured['rows'])} rows"
        )
    return out


def num_parameters(checkpoint: HFCheckpoint) -> int:
    """Numbers in the weights; a tied head is stored once or not counted twice."""
    tied = checkpoint.config.get("tie_word_embeddings")
    weights = checkpoint.state_dict.items()
    return sum(t.numel() for name, t in weights if not (tied and name == "lm_head.weight"))


def _unit(plan: Plan, unit: Unit, importance: Importance | None) -> dict[str, Any]:
    """Indices by layer, and the share of the importance that they hold."""
    kept = plan.kept[unit]
    values = {i: _values(plan, unit, importance, i) for i in kept}
    total = sum(float(v.sum()) for v in values.values())
    held = sum(float(values[i][index].sum()) for i, index in kept.items())
    named = {"all" if i < 0 else str(i): index.tolist() for i, index in kept.items()}
    return {"kept": named, "importance_kept": _rounded(held / total) if total else 1.0}


def _values(plan: Plan, unit: Unit, importance: Importance, layer: int) -> Tensor:
    if unit is Unit.CHANNEL:
        return importance.channels
    if unit is Unit.NEURON:
        return importance.neurons[layer]
    heads_H = importance.heads[layer]
    return (
        heads_H if unit is Unit.HEAD else heads_H.unflatten(0, (plan.teacher.kv_heads, -1)).sum(1)
    )


def _importance(importance: Importance, rows: Rows) -> dict[str, Any]:
    return {
        "rows": [row.id for row in rows.rows],
        "tokens": rows.tokens,
        "positions": importance.num_tokens,
        "influence": _all_rounded(importance.influence),
        "heads": [_all_rounded(layer) for layer in importance.heads],
        "neurons": [_spread(layer) for layer in importance.neurons],
        "channels": _spread(importance.channels),
    }


def _spread(values: Tensor) -> dict[str, float]:
    """Least, median and largest: thousands of single values would help nobody."""
    return {
        name: _rounded(float(values.quantile(at)))
        for name, at in {"min": 0.0, "median": 0.5, "max": 1.0}.items()
    }


def _all_rounded(values: Tensor) -> list[float]:
    return [_rounded(value) for value in values.tolist()]


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _with_score(layer: int, score: float | None) -> str:
    return str(layer) if score is None else f"{layer} ({score:.4g})"


def _listed(numbers: Sequence[int]) -> str:
    """Numbers with runs joined: 0-3, 7, 9-10."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
