"""``sad prune``: a student cut from a teacher, by place or by importance measured on data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sad_components.pruning.data import random_rows
from sad_components.pruning.depth import BY_DATA, BY_PLACE
from sad_components.pruning.importance import TOKENS, Rows
from sad_components.pruning.report import lines
from sad_components.pruning.shapes import Sizes
from sad_components.pruning.student import REPORT_FILE, needs_rows, prune
from sad_components.training.precision import resolve_device

_COUNTS = ("layers", "heads", "kv_heads", "ffn", "width")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``sad prune``; 0 when the student was written (or, dry, described)."""
    args = _parser().parse_args(argv)
    sizes = Sizes(**{name: getattr(args, name) for name in _COUNTS})
    if sizes == Sizes():
        raise ValueError("say what to prune: --layers, --heads, --kv-heads, --ffn or --width")
    depth = args.criterion if args.depth == "importance" else args.depth
    out = None if args.dry_run else args.out
    measured = {"data": args.data, "style": args.style, "seed": args.seed}
    report = prune(
        args.teacher,
        out,
        sizes,
        depth=depth,
        rows=partial(_rows, args),
        device=resolve_device(args.device),
        notes=measured if needs_rows(sizes, depth) else None,
    )
    print("\n".join(lines(report)))
    print("dry run: nothing written" if out is None else f"student -> {out} ({REPORT_FILE} in it)")
    return 0


def _rows(args: argparse.Namespace) -> Rows:
    return random_rows(
        args.teacher,
        args.data,
        args.rows,
        tokens=args.tokens,
        style=args.style,
        max_seq_len=args.max_seq_len,
        tokenizer_dir=args.tokenizer,
        seed=args.seed,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sad prune", description=__doc__)
    parser.add_argument("teacher", type=Path, help="folder in Hugging Face format")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--layers", type=int, metavar="N", help="layers of the student")
    parser.add_argument(
        "--depth", choices=[*BY_PLACE, "importance"], default="importance", help="which layers stay"
    )
    parser.add_argument(
        "--criterion",
        choices=BY_DATA,
        default="influence",
        help="of --depth importance: one measurement (influence), one after every layer that "
        "went (influence-again), or the outputs' KL without each layer (kl, slow)",
    )
    parser.add_argument("--heads", type=int, metavar="N", help="query heads a layer")
    parser.add_argument("--kv-heads", type=int, metavar="N", help="key/value heads a layer")
    parser.add_argument("--ffn", type=int, metavar="N", help="neurons of an MLP")
    parser.add_argument("--width", type=int, metavar="N", help="channels of the residual stream")
    parser.add_argument(
        "--data",
        default="shipped:household/train",
        metavar="SOURCE",
        help="trajectories to measure on: file, folder, hub id or shipped:ENV/SPLIT",
    )
    parser.add_argument("--rows", type=_positive, default=16, metavar="N", help="of the data (16)")
    parser.add_argument(
        "--tokens", choices=TOKENS, default="agent", help="REASON and ACT (agent), or all"
    )
    parser.add_argument("--style", choices=["chat", "plain"], default="chat")
    parser.add_argument(
        "--max-seq-len", type=_positive, default=1024, metavar="N", help="longer rows are cut"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: the teacher's")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of rows")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dry-run", action="store_true", help="report, but write nothing")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer > 0; got {value}")
    return value
