"""Files that are whole or not there, also when the power goes."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Waits until a file's contents, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """:func:`sync` for everything in ``folder``, and for itself last."""
    for inside, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(inside) / name)
        sync(Path(inside))


def make_folder(path: Path) -> None:
    """Makes a folder and those above it that lack; when it returns, their names are on the disk."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def replace(source: Path, target: Path) -> None:
    """Renames within a folder; when it returns, the new name is on the disk."""
    os.replace(source, target)
    sync(target.parent)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a text file as a whole."""
    make_folder(path.parent)
    aside = path.with_name(f".{path.name}.part")
    with open(aside, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    replace(aside, path)
