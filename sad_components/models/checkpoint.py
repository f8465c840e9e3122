"""Folders in Hugging Face format: read safely, written so that a failure loses nothing.

Only safetensors are read: ``.bin`` and ``.pt`` files are pickles, which run code when loaded.
Names in this module are Hugging Face's; families.py knows how to translate them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
GENERATION_FILE = "generation_config.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
#: Everything a tokenizer may consist of; whichever of them exist are copied.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
#: The model card; whoever writes a folder writes the card after it.
CARD_FILE = "README.md"
#: SHA-256 of the other files, where the folder was fetched (see sad_components/demo.py).
MANIFEST_FILE = "manifest.json"
#: A student as a program of another runtime, beside its manifest and tokenizer.
PROGRAM_FILES = ("model.pte", "model.gguf")
_REPLACEABLE = {
    CARD_FILE,
    MANIFEST_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    INDEX_FILE,
    GENERATION_FILE,
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    *TOKENIZER_FILES,
    *PROGRAM_FILES,
}


@dataclass(frozen=True, slots=True)
class HFCheckpoint:
    """What a folder in Hugging Face format holds.

    Args:
        state_dict: tensors by Hugging Face name, on the CPU.
        config: content of ``config.json``.
    """

    state_dict: dict[str, torch.Tensor]
    config: dict[str, Any]


def load_hf_folder(path: str | Path, *, dtype: torch.dtype | None = None) -> HFCheckpoint:
    """Config and weights of a folder in Hugging Face format; one or several safetensors files.

    Args:
        path: folder with ``config.json`` and ``model.safetensors``, or its shards and
            ``model.safetensors.index.json``.
        dtype: what floating-point tensors are cast to; ``None`` keeps the stored one.

    Raises:
        ValueError: no such folder, a missing or broken file, pickled weights, an index that
            points outside the folder or disagrees with its shards.
    """
    folder = Path(path)
    config = load_hf_config(folder)
    state_dict: dict[str, torch.Tensor] = {}
    for file, expected in _weight_files(folder):
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is not a readable safetensors file: {error}") from error
        if expected is not None and set(tensors) != expected:
            difference = sorted(set(tensors) ^ expected)[:5]
            raise ValueError(f"{INDEX_FILE} and {file} disagree about the tensors {difference}")
        state_dict.update(tensors)
    if dtype is not None:
        state_dict = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state_dict.items()}
    return HFCheckpoint(state_dict, config)


def load_hf_config(path: str | Path) -> dict[str, Any]:
    """Content of ``config.json`` in the folder ``path``.

    Raises:
        ValueError: no such folder or file, or it does not hold a JSON object.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(
            f"a checkpoint is a folder in Hugging Face format; {folder} is not a folder "
            "(the demo teacher comes from `sad fetch-demo`)"
        )
    return _read_json(folder / CONFIG_FILE)


def save_hf_folder(
    path: str | Path,
    state_dict: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    tokenizer_dir: str | Path | None = None,
) -> Path:
    """Writes config, weights and tokenizer as a folder in Hugging Face format; returns its path.

    Everything is written and flushed into a folder beside ``path`` which then takes its place by
    renaming. If anything fails before that, such as no space left, the previous content of
    ``path`` is still there; a crash between the two renames leaves it in ``.<name>.previous``.

    Args:
        path: the folder to make; an older checkpoint there is replaced.
        state_dict: tensors by Hugging Face name; no two share memory.
        config: content of ``config.json``.
        tokenizer_dir: folder whose tokenizer files (and ``generation_config.json``) are copied.

    Raises:
        ValueError: ``path`` holds other things than a checkpoint, or ``tokenizer_dir`` holds no
            tokenizer.
        OSError: the file system refuses: no space left, no permission, ...
    """
    tokenizer_files = [] if tokenizer_dir is None else _tokenizer_files(Path(tokenizer_dir))
    with replace_folder(path) as folder:
        for source in tokenizer_files:
            shutil.copyfile(source, folder / source.name)
        _write_folder(folder, WEIGHTS_FILE, state_dict, CONFIG_FILE, config)
    return Path(path)


def save_adapter_folder(
    path: str | Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> Path:
    """Writes an adapter as PEFT reads it, as safely as :func:`save_hf_folder`; returns its path.

    Args:
        path: the folder to make; an older adapter or checkpoint there is replaced.
        tensors: by PEFT's names; no two share memory.
        config: content of ``adapter_config.json``.

    Raises:
        ValueError: ``path`` holds other things than a checkpoint.
        OSError: the file system refuses.
    """
    with replace_folder(path) as folder:
        _write_folder(folder, ADAPTER_WEIGHTS_FILE, tensors, ADAPTER_CONFIG_FILE, config)
    return Path(path)


def _write_folder(
    folder: Path,
    weights_file: str,
    tensors: Mapping[str, torch.Tensor],
    config_file: str,
    config: Mapping[str, Any],
) -> None:
    on_cpu = {k: v.detach().to("cpu").contiguous() for k, v in tensors.items()}
    _save_weights(on_cpu, folder / weights_file)
    text = json.dumps(dict(config), indent=2, sort_keys=True) + "\n"
    (folder / config_file).write_text(text, encoding="utf-8")
    # safetensors makes files that only their owner may read
    shutil.copymode(folder / config_file, folder / weights_file)


@contextmanager
def replace_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder that takes the place of ``path`` when the block ends without an exception.

    Args:
        path: where the finished checkpoint shall be.

    Raises:
        ValueError: ``path`` is not a folder, or holds things that are no part of a checkpoint and
            would be lost.
    """
    target = Path(path).resolve()
    _check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.parent / f".{target.name}.writing"
    previous = target.parent / f".{target.name}.previous"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        yield fresh
        for file in sorted(fresh.iterdir()):
            _fsync(file)
        _fsync(fresh)
        if target.exists():
            shutil.rmtree(previous, ignore_errors=True)
            target.rename(previous)
        fresh.rename(target)
        _fsync(target.parent)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        if previous.exists() and not target.exists():
            previous.rename(target)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _save_weights(tensors: dict[str, torch.Tensor], file: Path) -> None:
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{file.name} could not be written, nothing was replaced: {error}") from error


def _check_replaceable(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ValueError(f"a checkpoint is written to a folder, but {target} is a file")
    foreign = sorted(entry.name for entry in target.iterdir() if entry.name not in _REPLACEABLE)
    if foreign:
        raise ValueError(
            f"{target} would be replaced, but holds things that are no part of a checkpoint: "
            f"{foreign[:5]}; write to a folder of its own"
        )


def _weight_files(folder: Path) -> list[tuple[Path, set[str] | None]]:
    """Each weight file with the tensor names its index promises (``None``: there is no index)."""
    if (folder / WEIGHTS_FILE).exists():
        return [(folder / WEIGHTS_FILE, None)]
    if (folder / INDEX_FILE).exists():
        return [(folder / name, keys) for name, keys in _read_index(folder).items()]
    pickled = sorted(f.name for f in folder.iterdir() if f.suffix in (".bin", ".pt", ".pth"))
    if pickled:
        raise ValueError(
            f"{folder} holds pickled weights ({pickled[0]}), which run code when loaded; only "
            "safetensors are read: take the safetensors version of this model"
        )
    raise ValueError(f"{folder} must hold {WEIGHTS_FILE} or {INDEX_FILE}; it holds neither")


def _read_index(folder: Path) -> dict[str, set[str]]:
    weight_map = _read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{folder / INDEX_FILE} must hold a non-empty object 'weight_map'")
    shards: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or "/" in name or "\\" in name or ".." in name:
            raise ValueError(f"{INDEX_FILE} must name files of its own folder; got {name!r}")
        if not name.endswith(".safetensors"):
            raise ValueError(f"{INDEX_FILE} must name .safetensors files; got {name!r}")
        if not (folder / name).is_file():
            raise ValueError(f"{INDEX_FILE} names {name}, which is not in {folder}")
        shards.setdefault(name, set()).add(tensor)
    return shards


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} must be a readable JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object, not a {type(content).__name__}")
    return content


def _tokenizer_files(folder: Path) -> list[Path]:
    found = [folder / n for n in (*TOKENIZER_FILES, GENERATION_FILE) if (folder / n).is_file()]
    if not any(file.name in TOKENIZER_FILES for file in found):
        raise ValueError(
            f"{folder} holds no tokenizer; expected tokenizer.json and tokenizer_config.json"
        )
    return found


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
