"""``sad card``: a run's model card anew, with what was learnt about the student since."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sad_components.export.model_card import write_run_cards


def main(argv: Sequence[str]) -> int:
    """Writes ``student/README.md`` (and ``quantized/README.md``); the exit code 0.

    Raises:
        ValueError: no finished run there, or an evaluation without that policy.
    """
    parser = argparse.ArgumentParser(
        prog="sad card", description="Write the model card of a finished run anew."
    )
    parser.add_argument("run", help="the run's output_dir")
    parser.add_argument("--evaluation", help="results.json of evaluate_agent: its success rate")
    parser.add_argument("--policy", help="which of its policies the student is (if several)")
    parser.add_argument("--title", help="heading (default: the run's name)")
    parser.add_argument("--data-licence", help="licence of the trajectories")
    args = parser.parse_args(argv)
    run = Path(args.run)
    summary = read_summary(run)
    played = None
    if args.evaluation is not None:
        played = policy_of(Path(args.evaluation), args.policy)
    known = {"evaluation": played, "data_licence": args.data_licence}
    print(*write_run_cards(run, summary, args.title, **known), sep="\n")
    return 0


def read_summary(run: Path) -> dict[str, Any]:
    """``summary.json`` of a finished run.

    Raises:
        ValueError: there is none.
    """
    path = run / "summary.json"
    if not path.is_file() or not (run / "student").is_dir():
        raise ValueError(f"a card is about a finished run; {run} holds no summary.json and student")
    return json.loads(path.read_text(encoding="utf-8"))


def policy_of(path: Path, policy: str | None) -> dict[str, Any]:
    """What ``evaluate_agent`` measured of one policy, with ``environment`` beside it.

    Raises:
        ValueError: no such file, or not one policy of that name.
    """
    if not path.is_file():
        raise ValueError(f"no results of evaluate_agent: {path} does not exist")
    results = json.loads(path.read_text(encoding="utf-8"))
    policies = results.get("policies") or {}
    if policy is None and len(policies) == 1:
        (policy,) = policies
    if policy not in policies:
        raise ValueError(
            f"--policy names one of {', '.join(policies) or 'none'} ({path}); got {policy!r}"
        )
    return {**policies[policy], "environment": results.get("environment")}
