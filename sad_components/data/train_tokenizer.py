"""``sad train-tokenizer``: a small byte-level BPE tokenizer out of canonical transcripts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from sad_components.data.bpe import train_bpe
from sad_components.trajectory import read_jsonl


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``sad train-tokenizer``; 0 when the folder was written."""
    args = _parser().parse_args(argv)
    target = args.out / "tokenizer.json"
    if target.exists() and not args.overwrite:
        raise ValueError(f"{target} exists and would be lost: choose another --out, or --overwrite")
    folder = train_bpe(
        chain.from_iterable(map(read_jsonl, args.file)),
        args.vocab_size,
        args.out,
        digits=not args.whole_numbers,
        numbered=args.numbered,
    )
    ids = json.loads(target.read_text(encoding="utf-8"))["model"]["vocab"]
    print(f"{len(ids)} tokens -> {folder}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sad train-tokenizer", description=__doc__)
    parser.add_argument("file", type=Path, nargs="+", help="canonical JSONL (see sad convert)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--vocab-size", type=int, default=512, help="most tokens (default: 512)")
    parser.add_argument(
        "--whole-numbers",
        action="store_true",
        help="let a number with the blank before it become one token instead of its digits",
    )
    parser.add_argument(
        "--numbered",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names that may become one token with the number behind them (--whole-numbers)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing tokenizer")
    return parser
