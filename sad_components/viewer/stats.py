"""``sad stats``: what a transcript file holds and how much of it would be supervised."""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sad_components.data.curriculum import complexity
from sad_components.data.rendering import Rendered
from sad_components.spans import AGENT_KINDS, SpanKind
from sad_components.viewer.reading import CutRow, Cutter, add_file_arguments, with_progress

if TYPE_CHECKING:
    from sad_components.data.tokenizers import OffsetTokenizer

#: Row lengths kept for percentiles: exact up to this many rows, a uniform sample beyond.
RESERVOIR = 10_000


@dataclass
class Distribution:
    """Mean, maximum and percentiles of a stream, in constant memory."""

    count: int = 0
    total: float = 0.0
    largest: float = 0.0
    _kept: list[float] = field(default_factory=list)
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    def add(self, value: float) -> None:
        """Takes one value in."""
        self.count += 1
        self.total += value
        self.largest = max(self.largest, value)
        if len(self._kept) < RESERVOIR:
            self._kept.append(value)
        elif (place := self._random.randrange(self.count)) < RESERVOIR:
            self._kept[place] = value

    def to_dict(self) -> dict[str, float]:
        """``mean``, ``p50``, ``p90``, ``max``; empty for no value."""
        if not self._kept:
            return {}
        ordered = sorted(self._kept)
        return {
            "mean": round(self.total / self.count, 2),
            "p50": ordered[len(ordered) // 2],
            "p90": ordered[min(len(ordered) * 9 // 10, len(ordered) - 1)],
            "max": self.largest,
        }


@dataclass
class Stats:
    """Counts over the rows of a file.

    Args:
        alpha: weight of REASON in the complexity (without its entropy term).
        beta: weight of ACT.
        tokenizer: counts its tokens; None counts characters.
    """

    alpha: float = 1.0
    beta: float = 1.0
    tokenizer: OffsetTokenizer | None = None
    rows: int = 0
    cut: int = 0
    steps: int = 0
    thoughts: int = 0
    actions: int = 0
    actions_without_thought: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    amount: Counter[str] = field(default_factory=Counter)
    length: Distribution = field(default_factory=Distribution)
    complexity: Distribution = field(default_factory=Distribution)

    def add(self, row: CutRow) -> None:
        """Takes one row in."""
        self.rows += 1
        if row.skipped is not None:
            self.skipped[_without_place(row.skipped)] += 1
            return
        self.cut += 1
        self.formats[str(row.format)] += 1
        self.notes.update(_without_place(note) for note in row.notes)
        self._add_steps(row)
        amount = self._measure(row)
        self.amount.update({kind.label: count for kind, count in amount.items()})
        self.length.add(sum(amount.values()))
        reason, act = amount[SpanKind.REASON], amount[SpanKind.ACT]
        self.complexity.add(complexity(reason, act, 0.0, alpha=self.alpha, beta=self.beta))

    def _add_steps(self, row: CutRow) -> None:
        thinking = {s.step for s in row.spans if s.kind is SpanKind.REASON}
        acting = {s.step for s in row.spans if s.kind is SpanKind.ACT}
        self.steps += len(thinking | acting)
        self.thoughts += sum(s.kind is SpanKind.REASON for s in row.spans)
        self.actions += sum(s.kind is SpanKind.ACT for s in row.spans)
        self.actions_without_thought += len(acting - thinking)

    def _measure(self, row: CutRow) -> Counter[SpanKind]:
        """Tokens, or characters without a tokenizer, of each kind."""
        amount: Counter[SpanKind] = Counter()
        if self.tokenizer is None:
            for span in row.spans:
                amount[span.kind] += span.end - span.start
            return amount
        from sad_components.data.transform import align  # slow to import

        rendered = Rendered(row.text, row.spans, row.literal)
        aligned = align(rendered, *self.tokenizer.encode(row.text, row.literal))
        amount.update(SpanKind(int(kind)) for kind in aligned.span_ids)
        return amount

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain JSON."""
        total = sum(self.amount.values())
        supervised = sum(self.amount[kind.label] for kind in AGENT_KINDS)
        return {
            "rows": self.rows,
            "cut": self.cut,
            "skipped": dict(self.skipped.most_common()),
            "formats": dict(self.formats.most_common()),
            "notes": dict(self.notes.most_common()),
            "steps": self.steps,
            "thoughts": self.thoughts,
            "actions": self.actions,
            "actions_without_thought": self.actions_without_thought,
            "unit": "characters" if self.tokenizer is None else "tokens",
            "amount": {kind.label: self.amount[kind.label] for kind in SpanKind},
            "supervised_fraction": round(supervised / total, 4) if total else 0.0,
            "length": self.length.to_dict(),
            "complexity": self.complexity.to_dict(),
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``sad stats``; 0, or 1 when no row could be cut."""
    args = _parser().parse_args(argv)
    cutter = Cutter(args.file, args.format, args.tokenizer)
    print(cutter.explain(), file=sys.stderr)
    stats = Stats(args.alpha, args.beta, cutter.tokenizer)
    for row in with_progress(cutter.rows()):
        stats.add(row)
    figures = stats.to_dict()
    print(json.dumps(figures, indent=2) if args.json else _table(figures))
    return 0 if stats.cut else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sad stats", description=__doc__)
    add_file_arguments(parser)
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="count this tokenizer's tokens instead of characters"
    )
    parser.add_argument("--alpha", type=float, default=1.0, help="weight of REASON in complexity")
    parser.add_argument("--beta", type=float, default=1.0, help="weight of ACT in complexity")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


def _table(figures: dict[str, Any]) -> str:
    lines = []
    for name, value in figures.items():
        label = name.replace("_", " ")
        if not isinstance(value, dict):
            lines.append(f"{label:<26}{value}")
            continue
        lines.append(f"{label:<26}{'' if value else 'none'}".rstrip())
        lines.extend(f"  {key:<24}{count}" for key, count in value.items())
    return "\n".join(lines)


def _without_place(reason: str) -> str:
    """A reason without the line or item it was found at, so that equal ones count together."""
    reason = re.sub(r"^(?:line|item) \d+: ", "", reason)
    return re.sub(r"\d+", "N", reason)[:200]
