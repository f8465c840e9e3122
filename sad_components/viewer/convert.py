"""``sad convert``: writes the rows of a transcript file as canonical JSONL."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sad_components.trajectory import Trajectory, write_jsonl
from sad_components.viewer.reading import Cutter, add_file_arguments, iter_rows, with_progress


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``sad convert``; 0, or 1 when no row could be converted (then nothing is written)."""
    args = _parser().parse_args(argv)
    cutter = Cutter(args.file, args.format)
    print(cutter.explain(), file=sys.stderr)
    rows = _Converted(cutter)
    first = next(rows, None)
    if first is None:
        print(f"0 rows converted, {rows.skipped} skipped: nothing written", file=sys.stderr)
        return 1
    count = write_jsonl(args.out, with_progress(_chain(first, rows)))
    print(f"{count} rows converted, {rows.skipped} skipped", file=sys.stderr)
    return 0


class _Converted(Iterator[Trajectory]):
    """Canonical records of a file's rows; reports each row that it skips on stderr."""

    def __init__(self, cutter: Cutter) -> None:
        self.skipped = 0
        self._cutter = cutter
        self._rows = iter_rows(cutter.path)

    def __next__(self) -> Trajectory:
        for row in self._rows:
            cut = self._cutter.cut(row)
            if cut.skipped is None:
                return self._cutter.trajectory(row)
            self.skipped += 1
            print(f"row {row.row} skipped: {cut.skipped}", file=sys.stderr)
        raise StopIteration


def _chain(first: Trajectory, rest: Iterator[Trajectory]) -> Iterator[Trajectory]:
    yield first
    yield from rest


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sad convert", description=__doc__)
    add_file_arguments(parser)
    parser.add_argument("out", type=Path, help="canonical JSONL to write")
    return parser
