"""``manifest.json``: what an exported folder holds, and that it is still that.

A runner that knows neither torch nor this project finds there all that it needs beside the model's
file: the tokenizer's files, how prompts are written, where a turn ends, and a SHA-256 of each file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sad_components.models.checkpoint import MANIFEST_FILE, PROGRAM_FILES

FORMAT = "sad_export"
#: Raised when a reader of older manifests would misunderstand a newer one.
FORMAT_VERSION = 1
KINDS = ("executorch", "gguf")
#: What of a ``SpanTokenizer`` decides how prompts are written.
TRANSFORM_KEYS = ("style", "format", "on_rewrite", "add_bos")


@dataclass(frozen=True)
class Manifest:
    """What an exported folder says about itself.

    Args:
        kind: the runtime: ``executorch`` or ``gguf``.
        variant: how weights and activations are held: ``fp32``, ``8da4w``, ..
        model_file: name of the model's file in the folder.
        max_seq_len: longest sequence, in tokens: positions of the cache.
        prefill_tokens: most tokens that one call reads.
        vocab_size: logits per token.
        architecture: the student's ``config.json``.
        quantization: what is quantised how; empty where nothing is.
        tokenizer: ``fingerprint`` (what it encodes), ``vocab_size``, ``bos_id``, ``eos_id``,
            ``pad_id``.
        transform: keyword arguments of ``SpanTokenizer`` that the student was trained with.
        format: name of the transcript format.
        markers: what opens a thought (``reason``), an action (``act``) and an answer
            (``observation``), and what ends an action in plain style (``stop``).
        chat_template: Jinja source, or None.
        stop_tokens: ids that end a turn.
        source: ``sha256`` by file of the student that was exported.
        versions: of the packages that wrote the folder.
        files: name -> ``sha256`` and ``bytes`` of every other file.
        extra: what a kind of its own has to say.
    """

    kind: str
    variant: str
    model_file: str
    max_seq_len: int
    prefill_tokens: int
    vocab_size: int
    architecture: dict[str, Any]
    quantization: dict[str, Any]
    tokenizer: dict[str, Any]
    transform: dict[str, Any]
    format: str
    markers: dict[str, str]
    chat_template: str | None
    stop_tokens: list[int]
    source: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


#: Type of each field in JSON.
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("kind", "variant", "model_file", "format"), (str,)),
    **dict.fromkeys(("max_seq_len", "prefill_tokens", "vocab_size"), (int,)),
    "chat_template": (str, type(None)),
    "stop_tokens": (list,),
}
_COUNTS = ("max_seq_len", "prefill_tokens", "vocab_size")
_OPTIONAL = ("extra",)


def write_manifest(folder: str | Path, manifest: Manifest) -> Manifest:
    """Writes ``manifest.json`` with the hashes of all other files of ``folder``; what it says.

    Args:
        folder: holds everything else already, and no folders.
        manifest: its ``files`` are not read.
    """
    root = Path(folder)
    files = {
        path.name: {"sha256": file_hash(path), "bytes": path.stat().st_size}
        for path in sorted(root.iterdir())
        if path.name != MANIFEST_FILE
    }
    content = {"format": FORMAT, "format_version": FORMAT_VERSION}
    described = {**asdict(manifest), "files": files}
    described["transcript_format"] = described.pop("format")
    text = json.dumps({**content, **described}, indent=2) + "\n"
    (root / MANIFEST_FILE).write_text(text, encoding="utf-8")
    return Manifest(**{**asdict(manifest), "files": files})


def read_manifest(folder: str | Path, verify: bool = True) -> Manifest:
    """The manifest of an exported folder.

    Args:
        folder: where it lies.
        verify: also read every file and compare its hash.

    Raises:
        ValueError: no folder, no manifest, one that cannot be read, is of a later version or says
            something impossible, a file that is missing, lies elsewhere or is not what it was; the
            message names the file and the field.
    """
    root = Path(folder)
    path = root / MANIFEST_FILE
    if not root.is_dir():
        raise ValueError(f"an exported student is a folder; {root} is none (sad export makes one)")
    if not path.is_file():
        raise ValueError(f"{root} holds no {MANIFEST_FILE}: it is no exported student (sad export)")
    content = _json(path)
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no manifest of an exported student: its format is "
            f"{content.get('format')!r}, not {FORMAT!r}"
        )
    if content.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {content.get('format_version')!r}; this version reads "
            f"{FORMAT_VERSION}: export the student anew, or read it with the version that wrote it"
        )
    manifest = _checked(content, path)
    for name, known in manifest.files.items():
        _check_file(root, name, known, path, verify)
    return manifest


def is_export(folder: str | Path) -> bool:
    """Whether a folder holds the manifest of an exported student, readable or not."""
    path = Path(folder) / MANIFEST_FILE
    try:
        return path.is_file() and json.loads(path.read_text("utf-8")).get("format") == FORMAT
    except (ValueError, AttributeError):
        return any((Path(folder) / name).is_file() for name in PROGRAM_FILES)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is no readable JSON ({error}): export the student anew"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def _checked(content: Mapping[str, Any], path: Path) -> Manifest:
    given = {k: v for k, v in content.items() if k not in ("format", "format_version")}
    given["format"] = given.pop("transcript_format", None)
    names = [f.name for f in fields(Manifest)]
    missing = [n for n in names if n not in given and n not in _OPTIONAL]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: export the student anew")
    values = {name: given[name] for name in names if name in given}
    for name, value in values.items():
        wanted = _TYPES.get(name, (dict,))
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ValueError(
                f"{path}: {name} must be a {wanted[0].__name__}; got {value!r:.80}: export the "
                "student anew"
            )
        if name in _COUNTS and value < 1:
            raise ValueError(f"{path}: {name} must be at least 1; got {value}")
    unknown = sorted(set(values["transform"]) - set(TRANSFORM_KEYS))
    if unknown:
        raise ValueError(
            f"{path}: transform has {', '.join(unknown)}; known: {', '.join(TRANSFORM_KEYS)}"
        )
    if values["kind"] not in KINDS:
        raise ValueError(f"{path}: kind is one of {', '.join(KINDS)}; got {values['kind']!r}")
    limit = values["vocab_size"]
    wrong = [t for t in values["stop_tokens"] if not isinstance(t, int) or not 0 <= t < limit]
    if wrong:
        raise ValueError(f"{path}: stop_tokens are ids from 0 to {limit - 1}; got {wrong[:3]}")
    if values["model_file"] not in values["files"]:
        raise ValueError(
            f"{path}: files does not list model_file, {values['model_file']!r}: export the student "
            "anew"
        )
    return Manifest(**values)


def _check_file(root: Path, name: str, known: Any, path: Path, verify: bool) -> None:
    if "/" in name or "\\" in name or name in ("", ".", "..") or "\0" in name:
        raise ValueError(f"{path} must name files of its own folder; got {name!r}")
    if not isinstance(known, Mapping) or not isinstance(known.get("sha256"), str):
        raise ValueError(f"{path}: files[{name!r}] must hold sha256 and bytes; got {known!r:.80}")
    file = root / name
    if file.is_symlink() and file.resolve().parent != root.resolve():
        raise ValueError(f"{file} is a link to a place outside the folder: copy the file there")
    if not file.is_file():
        raise ValueError(f"{path} names {name}, which is not in {root}: export the student anew")
    size = file.stat().st_size
    if size != known.get("bytes"):
        raise ValueError(
            f"{file} has {size:,} bytes, but {MANIFEST_FILE} says {known.get('bytes')!r}: it was "
            "cut or replaced; copy it anew, or export the student anew"
        )
    if verify and file_hash(file) != known["sha256"]:
        raise ValueError(
            f"{file} is not the file that was exported (its SHA-256 is not the one in "
            f"{MANIFEST_FILE}): it was damaged or replaced; copy it anew, or export the student "
            "anew"
        )
