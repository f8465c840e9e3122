"""Tokenised rows on disk: written once in bounded memory, then read where they lie.

A store lies in a folder of its own under the one that the config names. The folder's name ends in
the fingerprint of everything its rows were made of, so that rows of an earlier file, transform,
filter or version of this package are never taken for those asked for:

    FOLDER/train-1f0c93a5d2b74e66/
      store.json                            fingerprint's parts, reports, counts; written last
      tokens.i4, span_ids.i1, steps.i4, branch.i1     all rows' tokens, one after another
      rows.bin, ids.txt                     a fixed-size record and the id of each row
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from filelock import FileLock
from tqdm import tqdm

import sad_components
from sad_components.data.transform import TokenizedTrajectory
from sad_components.formats import list_formats
from sad_components.spans import SpanKind

#: Raised when the files below change their meaning.
LAYOUT = 1
META = "store.json"
ROWS, IDS = "rows.bin", "ids.txt"
#: Array of a row -> file and type on disk.
COLUMNS = {
    "tokens": ("tokens.i4", np.dtype("<i4")),
    "span_ids": ("span_ids.i1", np.dtype("i1")),
    "steps": ("steps.i4", np.dtype("<i4")),
    "branch": ("branch.i1", np.dtype("?")),
}
#: A row's record: where its tokens and its id end, and what is asked of all rows at once.
RECORD = np.dtype(
    [
        ("end", "<i8"),
        ("id_end", "<i8"),
        ("group", "<i4"),
        ("truncated", "<i4"),
        ("entropy", "<f8"),
        ("counts", "<i4", (len(SpanKind),)),
    ]
)


@dataclass(frozen=True)
class RowTable:
    """What orders and budgets need to know of all rows, without their tokens.

    Args:
        lengths: tokens per row, int64, shape [R].
        counts: tokens per row and span kind, int64, shape [R, 4].
        entropy: teacher entropy in nats per supervised token, NaN where unknown, shape [R].
        groups: index of the source that a row comes from, int64, shape [R].
    """

    lengths: np.ndarray
    counts: np.ndarray
    entropy: np.ndarray
    groups: np.ndarray

    @classmethod
    def from_records(cls, records: np.ndarray) -> RowTable:
        """From an array of :data:`RECORD`."""
        lengths = np.diff(records["end"], prepend=0).astype(np.int64)
        counts, groups = records["counts"].astype(np.int64), records["group"].astype(np.int64)
        return cls(lengths, counts, np.array(records["entropy"], np.float64), groups)


class GroupedRow(NamedTuple):
    """A row, and the index of the source that it comes from."""

    group: int
    row: TokenizedTrajectory


class RecordMaker:
    """Makes the :data:`RECORD` of each row, in order."""

    def __init__(self) -> None:
        self.end = self.id_end = 0

    def __call__(self, item: GroupedRow) -> np.ndarray:
        """The next row's record, shape []."""
        row = item.row
        self.end += len(row)
        self.id_end += len(_id_bytes(row.id))
        entropy = np.nan if row.entropy is None else row.entropy
        counts = np.bincount(row.span_ids, minlength=len(SpanKind))
        known = (self.end, self.id_end, item.group, row.truncated, entropy, counts)
        return np.array(known, dtype=RECORD)


class StoredRows(Sequence[TokenizedTrajectory]):
    """Rows read from a store when they are asked for; a slice reads nothing either.

    Args:
        folder: a finished store.

    Raises:
        ValueError: the store is of another layout, or a file is not as long as it was.
    """

    def __init__(self, folder: Path) -> None:
        meta = read_meta(folder)
        if meta["layout"] != LAYOUT:
            raise ValueError(f"the store {folder} has layout {meta['layout']}, not {LAYOUT}")
        sizes = {file: kind.itemsize * meta["tokens"] for file, kind in COLUMNS.values()}
        sizes |= {ROWS: RECORD.itemsize * meta["rows"], IDS: meta["id_bytes"]}
        for file, size in sizes.items():
            found = (folder / file).stat().st_size if (folder / file).is_file() else 0
            if found != size:
                raise ValueError(
                    f"the store {folder} is damaged: {file} had {size} bytes and has {found}; "
                    "delete that folder, and the rows are made anew"
                )
        self._columns = {
            name: np.memmap(folder / file, kind, "r") for name, (file, kind) in COLUMNS.items()
        }
        self._records = np.memmap(folder / ROWS, RECORD, "r")
        self._ids = np.memmap(folder / IDS, np.uint8, "r") if meta["id_bytes"] else np.zeros(0, "B")
        self._chosen = range(meta["rows"])

    def table(self) -> RowTable:
        """Lengths, counts, entropies and groups of all rows of the store."""
        return RowTable.from_records(np.asarray(self._records))

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> TokenizedTrajectory: ...
    @overload
    def __getitem__(self, index: slice) -> StoredRows: ...
    def __getitem__(self, index: int | slice) -> TokenizedTrajectory | StoredRows:
        chosen = self._chosen[index]
        if isinstance(chosen, int):
            return self._read(chosen)
        part = object.__new__(StoredRows)
        part.__dict__ |= {**self.__dict__, "_chosen": chosen}
        return part

    def _read(self, row: int) -> TokenizedTrajectory:
        record = self._records[row]
        before = self._records[row - 1] if row else np.zeros((), RECORD)
        start, end = int(before["end"]), int(record["end"])
        tokens, *rest = (np.array(column[start:end]) for column in self._columns.values())
        name = self._ids[int(before["id_end"]) : int(record["id_end"])].tobytes()
        entropy = float(record["entropy"])
        return TokenizedTrajectory(
            tokens.astype(np.int64),
            *rest,
            id=name.decode("utf-8", "surrogatepass"),
            truncated=int(record["truncated"]),
            entropy=None if np.isnan(entropy) else entropy,
        )


def open_store(
    root: str | Path,
    title: str,
    identity: Mapping[str, Any],
    make: Callable[[], Iterable[GroupedRow]],
    describe: Callable[[], list[dict[str, Any]]],
) -> tuple[StoredRows, list[dict[str, Any]], str]:
    """The rows that ``identity`` stands for: those stored under ``root``, made first if need be.

    Any number of processes may ask at once: one writes, the others wait. A process that dies while
    writing leaves nothing that is taken for a store.

    Args:
        root: the folder that the config names; made if missing.
        title: start of the store's own name.
        identity: plain JSON of everything the rows depend on, this package's code apart.
        make: the rows, in order.
        describe: called when all rows are made; what to remember of them, plain JSON.

    Returns:
        Rows, what ``describe`` gave when they were written, and where they lie (for people).

    Raises:
        ValueError: a store is damaged.
    """
    parts = {**identity, "code": code_digest(), "layout": LAYOUT}
    plain = json.dumps(parts, sort_keys=True)
    digest = hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    folder = Path(root).expanduser() / f"{title}-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = False
    if not (folder / META).is_file():
        with FileLock(folder.with_name(folder.name + ".lock")):
            if not (folder / META).is_file():  # else another process has made it meanwhile
                _write(folder, parts, make, describe)
                made = True
    reports = read_meta(folder)["reports"]
    return StoredRows(folder), reports, f"{folder} ({'written' if made else 'found there'})"


def read_meta(folder: Path) -> dict[str, Any]:
    """A store's ``store.json``."""
    return json.loads((folder / META).read_text(encoding="utf-8"))


def code_digest() -> str:
    """16 hex digits of the code that cuts and tokenises, registered formats of others included."""
    package = Path(sad_components.__file__).parent
    files = {package / "spans.py", package / "trajectory.py"}
    files |= {*(package / "data").glob("*.py"), *(package / "formats").glob("*.py")}
    modules = (sys.modules.get(type(format).__module__) for format in list_formats())
    files |= {Path(m.__file__) for m in modules if m is not None and getattr(m, "__file__", None)}
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _write(
    folder: Path,
    parts: Mapping[str, Any],
    make: Callable[[], Iterable[GroupedRow]],
    describe: Callable[[], list[dict[str, Any]]],
) -> None:
    aside = folder.with_name(folder.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    aside.mkdir()
    try:
        counts = _write_rows(aside, make())
        meta = {"layout": LAYOUT, **counts, "reports": describe(), "made_of": parts}
        text = json.dumps(meta, indent=1, ensure_ascii=True)
        (aside / META).write_text(text + "\n", encoding="utf-8")
        os.rename(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_rows(folder: Path, rows: Iterable[GroupedRow]) -> dict[str, int]:
    record_of, count = RecordMaker(), 0
    names = [*(file for file, _ in COLUMNS.values()), ROWS, IDS]
    handles = {name: open(folder / name, "wb") for name in names}  # noqa: SIM115
    try:
        # a bar on a terminal only: this is the one process that writes
        for item in tqdm(rows, desc=f"tokenising into {folder.parent}", unit="row", disable=None):
            for column, (file, kind) in COLUMNS.items():
                handles[file].write(getattr(item.row, column).astype(kind).tobytes())
            handles[ROWS].write(record_of(item).tobytes())
            handles[IDS].write(_id_bytes(item.row.id))
            count += 1
    finally:
        for handle in handles.values():
            handle.close()
    return {"rows": count, "tokens": record_of.end, "id_bytes": record_of.id_end}


def _id_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")
