"""A cache on disk: shards that are whole or absent, their checksums, and the manifest.

::

    cache/
      settings.json     fingerprint and codec: written first, compared on every later run
      head.safetensors  the teacher's output head (mode hidden only)
      train/shard_00000.safetensors  arrays of the supervised tokens, row after row
      train/shard_00000.json         its checksum and its rows: id, key, tokens, entropy
      heldout/..
      manifest.json     every file's checksum: written last, so that it marks the end
      entropy.json      trajectory id -> teacher entropy, nats per supervised token
      report.json       what the recipe printed

Every file is written aside, synced and renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from sad_components.loss import Head
from sad_components.training.teacher_cache.errors import CacheError
from sad_components.training.teacher_cache.fingerprint import file_hash

FORMAT = 1
SETTINGS, MANIFEST, HEAD = "settings.json", "manifest.json", "head.safetensors"
ENTROPY, REPORT = "entropy.json", "report.json"


@dataclass
class RowEntry:
    """One row of a shard.

    Args:
        id: the trajectory's.
        key: :func:`sad_components.data.batch.row_key`.
        counts: supervised tokens per span kind, length 4.
        entropy: sum of the teacher's entropies per span kind, nats, length 4.
    """

    id: str
    key: str
    counts: list[int]
    entropy: list[float]

    @property
    def tokens(self) -> int:
        """Supervised tokens."""
        return sum(self.counts)


@dataclass
class ShardEntry:
    """A finished shard.

    Args:
        path: relative to the cache, for example ``train/shard_00000.safetensors``.
        sha256: of the file.
        rows: in the order of their tokens.
    """

    path: str
    sha256: str
    rows: list[RowEntry]


def shard_path(dataset: str, index: int) -> str:
    """A shard's path inside the cache."""
    return f"{dataset}/shard_{index:05d}.safetensors"


def write_shard(
    root: Path, path: str, arrays: Mapping[str, Tensor], rows: list[RowEntry]
) -> ShardEntry:
    """Writes a shard and then its record; a process killed in between leaves no half of either."""
    target = root / path
    write_aside(target, lambda aside: Path(aside).write_bytes(save(dict(arrays))))
    entry = ShardEntry(path, file_hash(target), rows)
    write_json(_record_path(root, path), asdict(entry))
    return entry


def read_entry(root: Path, path: str, *, expected_sha256: str | None = None) -> ShardEntry:
    """A shard's record.

    Args:
        root: the cache.
        path: the shard's path inside it.
        expected_sha256: of the record's file, if known.

    Raises:
        CacheError: the record is missing or damaged.
    """
    record = _record_path(root, path)
    if expected_sha256 is not None:
        check_file(record, expected_sha256)
    loaded = read_json(record)
    try:
        rows = [RowEntry(**row) for row in loaded.pop("rows")]
        return ShardEntry(**loaded, rows=rows)
    except (TypeError, KeyError, AttributeError) as error:
        raise _damaged(record, f"it is no shard record ({error})") from None


def finished_entry(root: Path, path: str, keys: list[str]) -> ShardEntry | None:
    """The record of a shard that is whole and holds these rows; None if it must be made."""
    if not (root / path).is_file() or not _record_path(root, path).is_file():
        return None
    try:
        entry = read_entry(root, path)
    except CacheError:
        return None
    whole = file_hash(root / path) == entry.sha256
    return entry if whole and [row.key for row in entry.rows] == keys else None


def open_shard(root: Path, entry: ShardEntry) -> Any:
    """The shard, memory-mapped: ``get_slice(name)[a:b]`` reads those tokens only.

    Raises:
        CacheError: it is missing, or no safetensors file.
    """
    path = root / entry.path
    try:
        return safe_open(path, framework="pt", device="cpu")
    except Exception as error:  # safetensors raises classes of its own for damaged headers
        raise _damaged(path, str(error)) from None


def check_file(path: Path, sha256: str) -> None:
    """Raises :class:`CacheError`, naming the file, unless it has this checksum."""
    if not path.is_file():
        raise CacheError(f"{path} is missing: {_REMEDY}")
    found = file_hash(path)
    if found != sha256:
        raise _damaged(path, f"its SHA-256 is {found[:16]}.., not {sha256[:16]}..")


def write_head(root: Path, head: Head) -> None:
    """Stores a teacher's output head, whole."""
    tensors = {"weight": head.weight_VD} | ({} if head.bias_V is None else {"bias": head.bias_V})
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    write_aside(root / HEAD, lambda aside: Path(aside).write_bytes(save(plain)))


def write_manifest(root: Path, shards: list[ShardEntry], settings: Mapping[str, Any]) -> None:
    """Marks a cache as complete."""
    files = [name for name in (HEAD,) if (root / name).is_file()]
    files += [str(_record_path(root, s.path).relative_to(root)) for s in shards]
    content = {
        "format": FORMAT,
        "settings": dict(settings),
        "shards": [s.path for s in shards],
        "sha256": {s.path: s.sha256 for s in shards} | {f: file_hash(root / f) for f in files},
    }
    write_json(root / MANIFEST, content)


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a complete cache.

    Raises:
        CacheError: there is no cache, it is unfinished, or of another format.
    """
    if not (root / MANIFEST).is_file():
        if (root / SETTINGS).is_file():
            raise CacheError(
                f"the teacher cache {root} is unfinished (no {MANIFEST}): run the cache recipe "
                "again, it goes on where it stopped"
            )
        raise CacheError(f"no teacher cache in {root} (no {MANIFEST}): make one with cache_teacher")
    manifest = read_json(root / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise CacheError(
            f"{root / MANIFEST} must have format {FORMAT}, but has {found!r}: "
            "make the cache anew with this version"
        )
    return manifest


def read_json(path: Path) -> Any:
    """Raises :class:`CacheError`, naming the file, if it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CacheError(f"{path} is missing: {_REMEDY}") from None
    except ValueError as error:
        raise _damaged(path, f"it is no JSON ({error})") from None


def write_json(path: Path, content: Any) -> None:
    """Replaces a JSON file as a whole."""
    text = json.dumps(content, indent=1) + "\n"
    write_aside(path, lambda aside: Path(aside).write_text(text, encoding="utf-8"))


def write_aside(path: Path, write: Callable[[str], Any]) -> None:
    """Calls ``write`` with another name, syncs the file and renames it to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    write(str(aside))
    _sync(aside)
    os.replace(aside, path)
    _sync(path.parent)


def remove_leftovers(root: Path) -> None:
    """Deletes what killed processes left aside; call when nobody writes."""
    for part in root.rglob(".*.part"):
        part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _record_path(root: Path, path: str) -> Path:
    return root / Path(path).with_suffix(".json")


_REMEDY = "run the cache recipe again, it makes only what is missing or damaged"


def _damaged(path: Path, what: str) -> CacheError:
    return CacheError(f"{path} is damaged: {what}; {_REMEDY}")
