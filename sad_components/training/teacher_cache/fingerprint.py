"""What a cache was made of, so that it is never used for something else.

A fingerprint is a mapping from part to value: ``teacher``, ``chat_template``, ``tokenizer``,
``settings`` (plain JSON) and ``data`` (data set name to hash).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sad_components.data.batch import row_key
from sad_components.data.tokenizers import OffsetTokenizer
from sad_components.data.transform import TokenizedTrajectory
from sad_components.training.teacher_cache.errors import CacheError

#: What a reader calls each part.
_NAMES = {
    "teacher": "teacher weights",
    "weights_files": "teacher weights",
    "chat_template": "chat template",
    "tokenizer": "tokenizer",
    "settings": "settings",
    "spans": "supervised spans",
    "data": "data",
}


def hash_text(*texts: str) -> str:
    """16 hex digits of the texts, in order."""
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def hash_weights(model: nn.Module) -> str:
    """32 hex digits of a model's parameters and buffers: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(plain.numpy().data)
    return digest.hexdigest()[:32]


def hash_weight_files(folder: str | Path) -> str:
    """32 hex digits of a folder's safetensors files, in the order of their names.

    Raises:
        CacheError: the folder holds none.
    """
    files = sorted(Path(folder).expanduser().glob("*.safetensors"))
    if not files:
        raise CacheError(f"no *.safetensors in {folder}: expected the teacher's folder")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file_hash(file).encode())
    return digest.hexdigest()[:32]


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, hex."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_rows(rows: Iterable[TokenizedTrajectory]) -> str:
    """32 hex digits of the rows' tokens and spans, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row_key(row).encode())
    return digest.hexdigest()[:32]


def describe_tokenizer(tokenizer: OffsetTokenizer) -> dict[str, str]:
    """The parts that belong to the tokenizer."""
    template = tokenizer.chat_template
    return {
        "chat_template": hash_text(template) if template else "none",
        "tokenizer": tokenizer.fingerprint,
    }


def check_parts(
    stored: Mapping[str, Any], given: Mapping[str, Any], where: str, remedy: str
) -> None:
    """Raises :class:`CacheError` for the first part of ``given`` that ``stored`` has otherwise.

    Args:
        stored: the cache's fingerprint.
        given: what it is to be used with; may lack parts.
        where: the cache, for the message.
        remedy: what to do about it.
    """
    for part in _NAMES:
        if part not in given or part not in stored:
            continue
        mine, theirs = given[part], stored[part]
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            differing = [k for k in mine if k in theirs and mine[k] != theirs[k]]
            if differing:
                key = differing[0]
                raise _mismatch(f"{_NAMES[part]} ({key})", theirs[key], mine[key], where, remedy)
        elif mine != theirs:
            raise _mismatch(_NAMES[part], theirs, mine, where, remedy)


def _mismatch(part: str, stored: Any, given: Any, where: str, remedy: str) -> CacheError:
    return CacheError(
        f"the teacher cache {where} was made with different {part}: "
        f"{json.dumps(stored)} there, {json.dumps(given)} here; {remedy}"
    )


def check_rows(known: Iterable[str], rows: Sequence[TokenizedTrajectory], where: str) -> None:
    """Raises :class:`CacheError` unless the cache has every row; says whether spans or data differ.

    Args:
        known: keys of the rows in the cache.
        rows: what is to be learnt from.
        where: the cache, for the message.
    """
    keys = set(known)
    missing = [row for row in rows if row_key(row) not in keys]
    if not missing:
        return
    same_tokens = {key[:16] for key in keys}
    respanned = [row for row in missing if row_key(row)[:16] in same_tokens]
    part, found = (
        ("spans", "their tokens are there with other spans") if respanned else ("data", "unknown")
    )
    named = ", ".join(row.id for row in (respanned or missing)[:5])
    raise CacheError(
        f"the teacher cache {where} was made of other {part}: {len(missing)} of {len(rows)} rows "
        f"are not in it ({named}: {found}); make it with the same transform, dataset and heldout, "
        "or cache them into another folder"
    )
