"""``results.json`` as a table for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_COLUMNS: tuple[tuple[str, Callable[[Mapping[str, Any]], Any], str], ...] = (
    ("score", lambda r: r["score"], "{:.3f}"),
    ("steps", lambda r: r["steps"], "{:.1f}"),
    ("reasoning", lambda r: r["reasoning_length"], "{:.1f}"),
    ("thoughts", lambda r: r["thoughts"], "{:.1f}"),
    ("invalid", lambda r: r["invalid_actions"], "{:.1f}"),
    ("unparsed", lambda r: r["parse_failures"], "{:d}"),
    ("failed", lambda r: sum(r["failed"].values()), "{:d}"),
    ("step acc.", lambda r: r.get("heldout", {}).get("step_accuracy"), "{:.1%}"),
    ("tokens/s", lambda r: r["tokens_per_s"], "{:.0f}"),
    ("s/step", lambda r: r["seconds_per_step"], "{:.3f}"),
)


def format_results(results: Mapping[str, Any]) -> str:
    """A table of the policies, one of success by task type, and a line per comparison."""
    policies = results["policies"]
    width = max(map(len, policies))
    head = f"{'':<{width}}  {'success [95 %]':>22}"
    lines = [head + "".join(f"  {name:>9}" for name, _, _ in _COLUMNS)]
    for name, row in policies.items():
        cells = "".join(f"  {_cell(read(row), form):>9}" for _, read, form in _COLUMNS)
        lines.append(f"{name:<{width}}  {_rate(row['success']):>22}{cells}")
    types = sorted({t for row in policies.values() for t in row["by_task_type"]})
    if types not in ([], ["all"]):
        lines += ["", f"{'success by task type':<32}" + "".join(f"  {n:>14}" for n in policies)]
        for task_type in types:
            shares = (_share(row["by_task_type"].get(task_type)) for row in policies.values())
            lines.append(f"{task_type:<32}" + "".join(f"  {share:>14}" for share in shares))
    for c in results["comparisons"]:
        difference = c["success_difference"]
        lines.append(
            f"\n{c['a']} - {c['b']}: {difference['mean']:+.1%} success "
            f"[{difference['low']:+.1%}, {difference['high']:+.1%}] on {c['pairs']} pairs; "
            f"{c['only_a']} won by {c['a']} only, {c['only_b']} by {c['b']} only "
            f"(McNemar p = {c['mcnemar_p']:.3g})"
        )
    return "\n".join(lines)


def _rate(success: Mapping[str, Any]) -> str:
    if success["rate"] is None:
        return "-"
    return f"{success['rate']:.1%} [{success['low']:.1%}, {success['high']:.1%}]"


def _share(success: Mapping[str, Any] | None) -> str:
    return "-" if success is None else f"{success['won']} of {success['episodes']}"


def _cell(value: Any, form: str) -> str:
    return "-" if value is None else form.format(value)
