"""``sad report``: one self-contained page about runs, and its figures as PNGs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sad_components.report.load import load
from sad_components.report.page import build, render
from sad_components.training.durable import write_atomically


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``sad report``; 0 when the page was written."""
    args = _parser().parse_args(argv)
    material = load(args.runs)
    for note in material.notes:
        print(f"note: {note}", file=sys.stderr)
    report = build(material, list(map(str, args.runs)), args.teacher, args.episodes)
    figures = args.out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for picture in report.pictures:
        (figures / f"{picture.name}.png").write_bytes(picture.png)
    page = args.out / "index.html"
    write_atomically(page, render(report))
    print(f"{len(report.pictures)} figures -> {figures}")
    print(f"report -> {page}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sad report", description=__doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="output folder of a recipe, or a file of collected trajectories",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report"), metavar="DIR", help="default: report"
    )
    parser.add_argument(
        "--teacher", metavar="NAME", help="the policy that others are compared with"
    )
    parser.add_argument(
        "--episodes", type=_episodes, default=6, metavar="N", help="most episodes shown (6)"
    )
    return parser


def _episodes(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 50:
        raise argparse.ArgumentTypeError(f"between 0 and 50 episodes can be shown; got {value}")
    return value
