"""Writes a cache: shard by shard, on any number of ranks, and on from wherever it was killed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sad_components.data.batch import row_key
from sad_components.data.transform import TokenizedTrajectory
from sad_components.training import distributed
from sad_components.training.teacher_cache import shards
from sad_components.training.teacher_cache.fingerprint import check_parts, hash_rows
from sad_components.training.teacher_cache.shards import RowEntry, ShardEntry
from sad_components.training.teacher_cache.sources import Source


class CacheWriter:
    """One cache folder; a shard's content depends on its rows alone, not on who writes it.

    Args:
        root: the folder; made if missing.
        source: the teacher.
        datasets: name -> tokenised rows.
        settings: fingerprint of everything but the data (see ``fingerprint``).
        rows_per_shard: rows of each shard, by their index in the data set.
        rank, world: this process writes every ``world``-th shard.

    Raises:
        CacheError: the folder holds a cache of something else; the part that differs is named.
    """

    def __init__(
        self,
        root: str | Path,
        source: Source,
        datasets: Mapping[str, Sequence[TokenizedTrajectory]],
        settings: Mapping[str, Any],
        *,
        rows_per_shard: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if rows_per_shard < 1:
            raise ValueError(f"a shard holds at least one row; got {rows_per_shard}")
        self.root, self.source, self.datasets = Path(root), source, datasets
        self.rows_per_shard, self.rank, self.world = rows_per_shard, rank, world
        data = {name: hash_rows(rows) for name, rows in datasets.items()}
        self.settings = {**settings, "data": data}
        self._claim_folder()

    def _claim_folder(self) -> None:
        path = self.root / shards.SETTINGS
        if path.is_file():
            stored = shards.read_json(path)
            remedy = "choose another output_dir, or delete that folder"
            check_parts(stored, self.settings, str(self.root), remedy)
            self.settings["data"] = {**stored["data"], **self.settings["data"]}
        distributed.barrier()  # every rank has read before one writes
        if self.rank == 0:
            shards.write_json(path, self.settings)
        distributed.barrier()

    def write(self, progress: Callable[[int], Any] = lambda rows: None) -> None:
        """Makes this rank's missing shards.

        Args:
            progress: told how many rows are done, shard by shard; finished ones too.
        """
        for index, (path, rows) in enumerate(self._plan()):
            if index % self.world != self.rank:
                continue
            keys = [row_key(row) for row in rows]
            if shards.finished_entry(self.root, path, keys) is None:
                self._write_shard(path, rows, keys)
            progress(len(rows))

    def _write_shard(self, path: str, rows: Sequence[TokenizedTrajectory], keys: list[str]) -> None:
        encoded = self.source.encode(rows)
        names = encoded[0].parts
        arrays = {name: torch.cat([e.parts[name] for e in encoded]) for name in names}
        entries = [
            RowEntry(row.id, key, e.counts, e.entropy) for row, key, e in zip(rows, keys, encoded)
        ]
        shards.write_shard(self.root, path, arrays, entries)

    def finish(self) -> list[ShardEntry]:
        """Waits for all ranks, then writes manifest and entropies; every shard's record.

        Data sets that an earlier run put into this folder stay in it.
        """
        distributed.barrier()
        planned = [path for path, _ in self._plan()]
        earlier = self._earlier_shards()
        entries = [shards.read_entry(self.root, path) for path in [*planned, *earlier]]
        if self.rank == 0:
            shards.remove_leftovers(self.root)
            shards.write_json(self.root / shards.ENTROPY, entropy_by_id(entries))
            shards.write_manifest(self.root, entries, self.settings)
        distributed.barrier()
        return entries

    def _plan(self) -> list[tuple[str, Sequence[TokenizedTrajectory]]]:
        size = self.rows_per_shard
        return [
            (shards.shard_path(name, start // size), rows[start : start + size])
            for name, rows in self.datasets.items()
            for start in range(0, len(rows), size)
        ]

    def _earlier_shards(self) -> list[str]:
        if not (self.root / shards.MANIFEST).is_file():
            return []
        stored = shards.read_manifest(self.root)["shards"]
        return [path for path in stored if path.split("/")[0] not in self.datasets]


def entropy_by_id(entries: Sequence[ShardEntry]) -> dict[str, float]:
    """Trajectory id -> the teacher's mean entropy on its supervised tokens, nats per token."""
    sums: dict[str, list[float]] = {}
    for entry in entries:
        for row in entry.rows:
            total = sums.setdefault(row.id, [0.0, 0])
            total[0] += sum(row.entropy)
            total[1] += row.tokens
    return {name: total / max(tokens, 1) for name, (total, tokens) in sums.items()}
