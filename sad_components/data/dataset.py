"""Tokenised trajectories of one source or several, in memory or on disk, with their report."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from sad_components.data.filters import Filters
from sad_components.data.options import from_mapping
from sad_components.data.reading import SourceReader
from sad_components.data.report import DataReport, MixtureReport
from sad_components.data.sources import open_source
from sad_components.data.store import GroupedRow, RecordMaker, RowTable, StoredRows, open_store
from sad_components.data.transform import SpanTokenizer, TokenizedTrajectory


class RowDataset(Dataset):
    """Rows that a recipe learns from, whatever they came from.

    Attributes:
        rows: in a fixed order; a list, or read from disk when asked for.
        report: what became of every record; has ``lines()`` and ``to_dict()``.
        groups: index of each row's source, int64, shape [R]; None for a single source.
        weights: share of an epoch per source, summing to 1; None for rows as they are.
    """

    rows: Sequence[TokenizedTrajectory]
    report: DataReport | MixtureReport
    groups: np.ndarray | None = None
    weights: list[float] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TokenizedTrajectory:
        return self.rows[index]

    @cached_property
    def table(self) -> RowTable:
        """Lengths, tokens per kind, entropies and groups of all rows."""
        if isinstance(self.rows, StoredRows):
            return self.rows.table()
        return RowTable.from_records(self._records)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, int64, shape [R]."""
        return self.table.lengths

    def _load(
        self, readers: Sequence[SourceReader], title: str, store: str | None
    ) -> tuple[list[DataReport], str]:
        """Fills ``rows``; the readers' reports, and where the rows lie if on disk."""
        if store is None:
            record_of = RecordMaker()
            items = list(_all_rows(readers))
            self._records = np.array([record_of(item) for item in items])
            self.rows = [item.row for item in items]
            return [reader.report for reader in readers], ""
        self.rows, found, where = open_store(
            store,
            title,
            {"sources": [reader.identity() for reader in readers]},
            lambda: _all_rows(readers),
            lambda: [reader.report.to_dict() for reader in readers],
        )
        return [DataReport.from_dict(report) for report in found], where


class TrajectoryDataset(RowDataset):
    """Tokenised trajectories of one source.

    Args:
        source: a ``.jsonl`` or ``.parquet`` file, a folder or glob of such, a hub id
            ``owner/name``, or ``shipped:<env>/<split>``.
        transform: makes rows of trajectories.
        limit: use the first this many records (counted before filters); None for all.
        split: of a hub dataset (default ``train``).
        name: configuration of a hub dataset.
        revision: branch, tag or commit of a hub dataset.
        format: transcript format of this source, instead of the transform's.
        filters: a :class:`~sad_components.data.filters.Filters`, or a mapping of its fields.
        store: folder in which tokenised rows are kept, for data larger than memory; None keeps
            them in memory.

    Raises:
        FileNotFoundError: no such file.
        TrajectoryError: a malformed line (file and line named), no record, or none of use.
        ValueError: an option is none of its choices.

    Example:
        >>> data = TrajectoryDataset("shipped:household/heldout", transform, limit=2)
        >>> len(data), data.report.kept
        (2, 2)
    """

    def __init__(
        self,
        source: str,
        transform: SpanTokenizer,
        *,
        limit: int | None = None,
        split: str | None = None,
        name: str | None = None,
        revision: str | None = None,
        format: str | None = None,
        filters: Filters | Mapping[str, Any] | None = None,
        store: str | None = None,
    ) -> None:
        reader = SourceReader(
            str(source),
            open_source(source, split=split, name=name, revision=revision),
            transform,
            format=format,
            limit=limit,
            filters=from_mapping(Filters, filters, "filters"),
        )
        (report,), where = self._load([reader], _file_title(source), store)
        report.store = where
        self.report = report


@dataclass(frozen=True)
class MixtureSource:
    """One entry of a mixture's ``sources``; keys as in :class:`TrajectoryDataset`.

    Args:
        weight: share of each epoch, relative to the other sources'; above 0.
    """

    source: str
    weight: float | None = None
    limit: int | None = None
    split: str | None = None
    name: str | None = None
    revision: str | None = None
    format: str | None = None
    filters: Mapping[str, Any] | None = None

    def reader(
        self, transform: SpanTokenizer, filters: Mapping[str, Any], where: str
    ) -> SourceReader:
        """Reads this source; its own filters stand before the mixture's ``filters``."""
        rows = open_source(self.source, split=self.split, name=self.name, revision=self.revision)
        from_mapping(Filters, self.filters, f"{where}.filters")  # a message with its own place
        own = {**filters, **(self.filters or {})}
        return SourceReader(
            str(self.source),
            rows,
            transform,
            format=self.format,
            limit=self.limit,
            filters=from_mapping(Filters, own, f"{where}.filters"),
            file_in_names=True,
        )


class MixedDataset(RowDataset):
    """Tokenised trajectories of several sources, with the share of each epoch that each gets.

    An epoch has as many rows as all sources together. A source's rows come again only once all of
    them were seen. The drawing is :class:`~sad_components.data.order.StepOrder`'s.

    Args:
        sources: mappings of :class:`MixtureSource`'s fields. All have a ``weight``, or none has:
            then every row comes once an epoch.
        transform: makes rows of trajectories.
        filters: for every source; a source's own ``filters`` win, key by key. With
            ``duplicates: drop`` a row is also dropped when an earlier source has it.
        store: folder in which the tokenised rows of all sources are kept; None for memory.

    Raises:
        FileNotFoundError: no such file.
        TrajectoryError: a malformed line, or a source without a row of use.
        ValueError: an option is none of its choices; its place is named.
    """

    def __init__(
        self,
        sources: Sequence[Mapping[str, Any]],
        transform: SpanTokenizer,
        *,
        filters: Mapping[str, Any] | None = None,
        store: str | None = None,
    ) -> None:
        if not isinstance(sources, Sequence) or isinstance(sources, str) or not sources:
            raise ValueError(f"sources is a list of at least one source; got {sources!r:.120}")
        from_mapping(Filters, filters, "filters")
        places = [f"sources[{i}]" for i in range(len(sources))]
        parts = [from_mapping(MixtureSource, s, p) for s, p in zip(sources, places)]
        self.weights = _shares([part.weight for part in parts])
        shared = dict(filters or {})
        readers = [part.reader(transform, shared, p) for part, p in zip(parts, places)]
        reports, where = self._load(readers, "mixture", store)
        self.report = MixtureReport(reports, self.weights, where)
        self.groups = self.table.groups


def dataset_type(node: Any) -> type[RowDataset]:
    """The class that a config's ``dataset`` node is for: a mixture if it has ``sources``."""
    return MixedDataset if isinstance(node, Mapping) and "sources" in node else TrajectoryDataset


def _all_rows(readers: Sequence[SourceReader]) -> Iterator[GroupedRow]:
    """The rows of all sources, one source after another."""
    dropping = any(reader.filters.duplicates == "drop" for reader in readers)
    seen: set[bytes] | None = set() if dropping else None
    for group, reader in enumerate(readers):
        for row in reader.rows(seen):
            yield GroupedRow(group, row)


def _shares(weights: Sequence[float | None]) -> list[float] | None:
    if all(weight is None for weight in weights):
        return None
    for index, weight in enumerate(weights):
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 < weight < float("inf"):
            raise ValueError(
                f"every source has a weight above 0, or none has one; got {weight!r} in "
                f"sources[{index}]"
            )
    total = sum(weights)
    return [weight / total for weight in weights]


def _file_title(source: str) -> str:
    """A folder name that tells people where a store's rows came from."""
    return re.sub(r"[^\w.-]+", "_", Path(str(source)).stem).strip("_") or "rows"
