"""From the raw rows of a source to tokenised rows, one at a time, with a report."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Container, Iterator, Mapping
from itertools import chain, islice
from typing import Any

from sad_components.data.filters import DUPLICATE, Filters, content_digest
from sad_components.data.report import DataReport
from sad_components.data.sources import RawRow, RowSource
from sad_components.data.tokenizers import HFTokenizer
from sad_components.data.transform import SpanTokenizer, TokenizedTrajectory
from sad_components.formats import get_format
from sad_components.formats.base import Format
from sad_components.formats.registry import CANONICAL, Detector, to_trajectory
from sad_components.trajectory import Trajectory, TrajectoryError

#: Rows from which ``auto`` decides on the format.
SAMPLE = 50


class SourceReader:
    """Tokenised rows of one source; never holds more than the sample for the format.

    Args:
        title: the source's name in the report.
        source: raw rows.
        transform: makes rows of trajectories.
        format: transcript format of the rows; None for the transform's.
        limit: read the first this many records; None for all.
        filters: which to keep.
        file_in_names: put ``title`` before the line number that names a row without an id.

    Attributes:
        report: :class:`DataReport`, complete once :meth:`rows` is exhausted.
    """

    def __init__(
        self,
        title: str,
        source: RowSource,
        transform: SpanTokenizer,
        *,
        format: str | None = None,
        limit: int | None = None,
        filters: Filters | None = None,
        file_in_names: bool = False,
    ) -> None:
        if limit is not None and (isinstance(limit, bool) or limit < 1):
            raise ValueError(f"limit is at least 1, or null for all records; got {limit!r}")
        self.source, self.transform, self.limit = source, transform, limit
        self.format = format or transform.format
        self.filters = filters or Filters()
        self.report = DataReport(title)
        self._prefix = f"{title} " if file_in_names else ""
        self._detector: Detector | None = None
        self._format = None if self.format == "auto" else get_format(self.format)

    def identity(self) -> dict[str, Any]:
        """Plain JSON that differs when the tokenised rows may (code apart)."""
        return {
            "source": self.source.identity(),
            "format": self.format,
            "limit": self.limit,
            "filters": vars(self.filters),
            "transform": describe_transform(self.transform),
        }

    def rows(self, seen: set[bytes] | None = None) -> Iterator[TokenizedTrajectory]:
        """The rows that can be learnt from, in the order of the source.

        Args:
            seen: contents kept so far, added to; None where nobody drops duplicates.

        Raises:
            TrajectoryError: a malformed line, no record, or none of use (with the report).
        """
        for raw in self._sampled(islice(self.source.rows(), self.limit)):
            self.report.rows += 1
            yield from self._kept(raw, seen)
        if not self.report.kept:
            raise TrajectoryError("\n".join(["no row can be learnt from", *self.report.lines()]))

    def _kept(self, raw: RawRow, seen: set[bytes] | None) -> Iterator[TokenizedTrajectory]:
        """The rows of one record; what is left out goes into the report."""
        name = str(raw.record.get("id") or self._prefix + raw.where)
        left_out: list[str] = []
        try:
            trajectory = to_trajectory(raw.record, self._format or self._chosen(raw.record))
            name = trajectory.id or name
            digest = content_digest(trajectory) if seen is not None else None
            reason = self._refusal(trajectory, digest, seen or ())
            rows = [] if reason else self.transform.rows(trajectory, left_out)
        except TrajectoryError as error:
            self.report.skipped[str(error)].append(name)
            return
        if reason:
            self.report.dropped[reason].append(name)
        for why in left_out:
            self.report.skipped[f"one turn: {why}"].append(name)
        for row in rows:
            if reason := self.filters.refuse_row(row):
                self.report.dropped[reason].append(name)
                continue
            if seen is not None and digest is not None:
                seen.add(digest)
            row.id = name
            self.report.add(row)
            yield row

    def _refusal(
        self, trajectory: Trajectory, digest: bytes | None, seen: Container[bytes | None]
    ) -> str | None:
        if reason := self.filters.refuse(trajectory):
            return reason
        return DUPLICATE if self.filters.duplicates == "drop" and digest in seen else None

    def _sampled(self, rows: Iterator[RawRow]) -> Iterator[RawRow]:
        """The same rows, once the first of them have told what formats there are."""
        sample = list(islice(rows, SAMPLE))
        if not sample:
            raise TrajectoryError(f"{self.report.source} holds no trajectory: the file is empty")
        if self._format is not None:
            self.report.format = f"{self._format.name}, set in the config"
        else:
            try:
                self._detector = Detector(raw.record for raw in sample)
            except TrajectoryError as error:
                raise TrajectoryError(f"{self.report.source}: {error}") from None
            self.report.format = self._detector.explain()
        return chain(sample, rows)

    def _chosen(self, record: Mapping[str, Any]) -> Format:
        canonical = get_format(CANONICAL)
        if canonical.row_evidence(record).score > 0:
            return canonical  # it names its own format: no need to ask the others
        assert self._detector is not None
        return self._detector.choose(record)[0]


def describe_transform(transform: SpanTokenizer) -> dict[str, Any]:
    """The options of a transform and what identifies its tokenizer, as plain JSON."""
    names = [n for n in inspect.signature(type(transform)).parameters if n != "tokenizer"]
    tokenizer = transform.tokenizer
    known = {"fingerprint": tokenizer.fingerprint, "bos_id": tokenizer.bos_id}
    known["variables"] = getattr(tokenizer, "template_variables", None)
    if isinstance(tokenizer, HFTokenizer):
        known["file"] = hashlib.sha256(tokenizer.backend.to_str().encode()).hexdigest()
    return {**{name: getattr(transform, name) for name in names}, "tokenizer": known}
