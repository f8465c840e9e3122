"""What became of the rows of a source, for people and as JSON."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from sad_components.data.transform import TokenizedTrajectory
from sad_components.spans import SpanKind

_SHOWN_REASONS = 8
_SHOWN_IDS = 5


@dataclass
class DataReport:
    """What became of the rows of a source.

    Args:
        source: where they came from.
        rows: records read.
        kept: rows that can be learnt from.
        skipped: reason -> ids (or line numbers) of the rows that cannot.
        dropped: reason -> ids of the rows that a filter dropped.
        truncated: rows cut to ``max_seq_len``.
        dropped_tokens: tokens lost by that.
        tokens: kept tokens per span kind.
        format: how the transcript format was decided.
        store: where the tokenised rows lie, if on disk.
    """

    source: str
    rows: int = 0
    kept: int = 0
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    dropped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    truncated: int = 0
    dropped_tokens: int = 0
    tokens: Counter = field(default_factory=Counter)
    format: str = ""
    store: str = ""

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> DataReport:
        """What :meth:`to_dict` wrote."""
        report = cls(**{**plain, "tokens": Counter(plain["tokens"])})
        report.skipped = defaultdict(list, report.skipped)
        report.dropped = defaultdict(list, report.dropped)
        return report

    def add(self, row: TokenizedTrajectory) -> None:
        """Counts a kept row."""
        self.kept += 1
        counts = np.bincount(row.span_ids, minlength=len(SpanKind))
        self.tokens.update({k.label: int(counts[k]) for k in SpanKind})
        if row.truncated:
            self.truncated += 1
            self.dropped_tokens += row.truncated

    def lines(self) -> list[str]:
        """For people: what was kept, cut and left out."""
        total = sum(self.tokens.values())
        kinds = ", ".join(f"{k} {n:,}" for k, n in self.tokens.items())
        of = f"of {self.rows} rows"
        if self.kept > self.rows:
            of = f"rows of {self.rows} records"  # one a turn
        out = [f"{self.source}: {self.kept} {of}, {total:,} tokens ({kinds})"]
        if self.truncated:
            out.append(
                f"  cut at a step boundary to fit max_seq_len: {self.truncated} rows, "
                f"{self.dropped_tokens:,} tokens dropped"
            )
        out += [*_left_out("filtered out", self.dropped), *_left_out("skipped", self.skipped)]
        return [*out, *_stored(self.store)]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**plain, **{key: dict(plain[key]) for key in ("skipped", "dropped", "tokens")}}


@dataclass
class MixtureReport:
    """What became of the rows of several sources.

    Args:
        parts: a report per source.
        weights: share of each epoch that is the source's; None for shares as large as sources.
        store: where the tokenised rows lie, if on disk.
    """

    parts: Sequence[DataReport]
    weights: Sequence[float] | None = None
    store: str = ""

    def lines(self) -> list[str]:
        """For people: the shares, then what each source's report says."""
        kept = sum(part.kept for part in self.parts)
        out = [f"mixture of {len(self.parts)} sources, {kept} rows an epoch:"]
        for index, part in enumerate(self.parts):
            own = part.kept / kept
            share = own if self.weights is None else self.weights[index]
            seen = f", each row seen {share / own:.2f} times" if self.weights is not None else ""
            first, *rest = part.lines()
            out += [f"  {share:.1%} of an epoch{seen}: {first}", *(f"  {line}" for line in rest)]
        return [*out, *_stored(self.store)]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: the sums under a single source's names, and ``sources``."""
        tokens: Counter = Counter()
        for part in self.parts:
            tokens.update(part.tokens)
        counts = ("rows", "kept", "truncated", "dropped_tokens")
        return {
            **{name: sum(getattr(part, name) for part in self.parts) for name in counts},
            "tokens": dict(tokens),
            "weights": None if self.weights is None else list(self.weights),
            "store": self.store,
            "sources": [part.to_dict() for part in self.parts],
        }


def _stored(where: str) -> list[str]:
    return [f"  tokenised rows: {where}"] if where else []


def _left_out(verb: str, reasons: Mapping[str, Sequence[str]]) -> list[str]:
    """A line per reason, the commonest first, with some ids; a line for the rarest together."""
    ranked = sorted(reasons.items(), key=lambda item: -len(item[1]))
    out = []
    for reason, ids in ranked[:_SHOWN_REASONS]:
        shown = ", ".join(ids[:_SHOWN_IDS]) + (", .." if len(ids) > _SHOWN_IDS else "")
        out.append(f"  {verb} {len(ids)} ({shown}): {reason}")
    if rest := ranked[_SHOWN_REASONS:]:
        count = sum(len(ids) for _, ids in rest)
        out.append(f"  {verb} {count} more, for {len(rest)} other reasons")
    return out
