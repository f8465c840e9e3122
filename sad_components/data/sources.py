"""Raw rows from wherever people keep them, one at a time: JSONL, Parquet, the Hugging Face hub.

JSONL is read line by line here and not through ``datasets``, whose JSON reader gives a file one
schema: it stops where a later row has text parts instead of a string, and names no line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sad_components.data.shipped import SHIPPED, resolve_source
from sad_components.trajectory import TrajectoryError, iter_json_lines

#: What a file's suffix says about its content.
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
#: Rows of a Parquet file decoded at once (by default a whole row group is).
PARQUET_BATCH = 256
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class RawRow(NamedTuple):
    """A row as found: ``where`` names it in messages (``line 12``, ``row 3``)."""

    where: str
    record: Mapping[str, Any]


class RowSource(Protocol):
    """Rows in a fixed order, read anew each time, never all at once."""

    def rows(self) -> Iterator[RawRow]:
        """The rows.

        Raises:
            TrajectoryError: one is no JSON object, or cannot be read (where is named).
        """
        ...

    def identity(self) -> dict[str, Any]:
        """Plain JSON that differs when the content does.

        Raises:
            ValueError: the content can change without a sign.
        """
        ...


@dataclass(frozen=True)
class JsonlFiles:
    """Objects of JSONL files, file after file; row by row each may look different."""

    files: Sequence[Path]

    def rows(self) -> Iterator[RawRow]:
        for file in self.files:
            prefix = f"{file.name} " if len(self.files) > 1 else ""
            for number, record in iter_json_lines(file):
                if not isinstance(record, dict):
                    raise TrajectoryError(
                        f"{file}:{number}: a row is a JSON object; got {record!r:.60}"
                    )
                yield RawRow(f"{prefix}line {number}", record)

    def identity(self) -> dict[str, Any]:
        return _files_identity(self.files)


@dataclass(frozen=True)
class ParquetFiles:
    """Rows of Parquet files, streamed by ``datasets``; nulls for absent keys are left out."""

    files: Sequence[Path]

    def rows(self) -> Iterator[RawRow]:
        import datasets  # slow to import

        for file in self.files:
            prefix = f"{file.name} " if len(self.files) > 1 else ""
            try:
                table = datasets.load_dataset(
                    "parquet",
                    data_files=[glob_escaped(file)],
                    split="train",
                    streaming=True,
                    batch_size=PARQUET_BATCH,
                )
                for number, record in enumerate(table, start=1):
                    yield RawRow(f"{prefix}row {number}", as_written(record))
            except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
                raise TrajectoryError(f"{file} cannot be read as Parquet: {error}") from error

    def identity(self) -> dict[str, Any]:
        return _files_identity(self.files)


@dataclass(frozen=True)
class HubRows:
    """Rows of a dataset on the hub, streamed; code that comes with a dataset is never run.

    Args:
        repo: ``owner/name``.
        split: such as ``train``.
        name: its configuration, where it has several.
        revision: branch, tag or commit.
    """

    repo: str
    split: str = "train"
    name: str | None = None
    revision: str | None = None

    def rows(self) -> Iterator[RawRow]:
        import datasets  # slow to import

        try:
            table = datasets.load_dataset(
                self.repo, self.name, split=self.split, revision=self.revision, streaming=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise TrajectoryError(
                f"cannot load split {self.split!r} of {self.repo!r} from the Hugging Face hub: "
                f"{error} (a file on this machine is named by its path: ./{self.repo})"
            ) from error
        for number, record in enumerate(table, start=1):
            yield RawRow(f"row {number}", as_written(record))

    def identity(self) -> dict[str, Any]:
        if self.revision is None or not _COMMIT.fullmatch(self.revision):
            raise ValueError(
                f"a store of {self.repo!r} needs revision, the 40 digits of a commit of that "
                f"dataset, because a branch can change unseen; got {self.revision!r}"
            )
        return {
            "repo": self.repo,
            "split": self.split,
            "name": self.name,
            "revision": self.revision,
        }


def open_source(
    source: str,
    *,
    split: str | None = None,
    name: str | None = None,
    revision: str | None = None,
) -> RowSource:
    """The rows that a config's ``source`` means.

    Args:
        source: path of a ``.jsonl`` or ``.parquet`` file (another suffix is read as JSONL), a
            folder or glob of such files, ``shipped:<env>/<split>``, or a hub id ``owner/name``.
        split: of a hub dataset; ``train`` by default.
        name: configuration of a hub dataset.
        revision: branch, tag or commit of a hub dataset.

    Raises:
        FileNotFoundError: no such file (near names are given), or none in the folder.
        ValueError: a folder of several kinds, or a hub option for files.
    """
    source = str(source)
    if _is_hub_id(source):
        return HubRows(source, split or "train", name, revision)
    for key, value in (("split", split), ("name", name), ("revision", revision)):
        if value is not None:
            raise ValueError(f"{key} belongs to a hub dataset (owner/name), but {source!r} is not")
    files = _find_files(source)
    kinds = {SUFFIXES.get(file.suffix, "jsonl") for file in files}
    if len(kinds) > 1:
        raise ValueError(
            f"{source!r} holds JSONL and Parquet files; name one kind, such as {source}/*.jsonl"
        )
    return ParquetFiles(files) if kinds == {"parquet"} else JsonlFiles(files)


def as_written(value: Any) -> Any:
    """``value`` without the null keys of its objects, at any depth.

    A column of objects has one set of keys for all its rows in Arrow, null where a row has none,
    the arguments of a tool call included.
    """
    if isinstance(value, dict):
        return {k: as_written(v) for k, v in value.items() if v is not None}
    return [as_written(v) for v in value] if isinstance(value, list) else value


def glob_escaped(path: Path) -> str:
    """``path`` such that ``datasets`` takes it for that one file, whatever its name."""
    return re.sub(r"([*?[])", r"[\1]", str(path.absolute()))


def _is_hub_id(source: str) -> bool:
    path = Path(source)
    return (
        _HUB_ID.fullmatch(source) is not None
        and path.suffix not in (*SUFFIXES, ".json", ".txt", ".csv", ".gz")
        and not path.exists()
        and not path.parent.is_dir()
    )


def _find_files(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if source.startswith(SHIPPED) or path.is_file():
        return [resolve_source(source)]
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix in SUFFIXES]
    else:
        files = [Path(found) for found in sorted(glob(str(path))) if Path(found).is_file()]
    if files:
        return files
    if path.is_dir():
        raise FileNotFoundError(f"no {', '.join(SUFFIXES)} file in the folder {source!r}")
    raise FileNotFoundError(
        f"no trajectory file {source!r} (looked in {Path.cwd()}){_near(path)}; give the path of a "
        "JSONL or Parquet file, a folder of them, a hub id (owner/name), or "
        "shipped:household/train for the one in the package"
    )


def _near(path: Path) -> str:
    folder = path.parent
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f"; near names: {', '.join(str(folder / name) for name in close)}" if close else ""


def _files_identity(files: Sequence[Path]) -> dict[str, Any]:
    stats = [(file.resolve(), file.stat()) for file in files]
    return {"files": [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]}
