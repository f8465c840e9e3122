"""Checkpoints of a run: each is whole or not there, wherever the process is stopped.

A checkpoint is written into a folder aside, flushed to the disk, and renamed. Its last file lists
all others with their checksums; a folder that disagrees with that list is never resumed from.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from sad_components.training.config import ConfigError
from sad_components.training.durable import make_folder, replace, sync_tree, write_atomically
from sad_components.training.teacher_cache.fingerprint import file_hash

STATE, MANIFEST = "state.pt", "manifest.json"
#: What a checkpoint is called while another of the same step takes its place.
_REPLACED = ".replaced"
_NAME = re.compile(rf"step_(\d{{8,}})({re.escape(_REPLACED)})?")


class Checkpoints:
    """The checkpoints of a run.

    Args:
        output_dir: the run's folder; the first save makes ``checkpoints`` in it.
        keep: how many stay; the oldest go first.
    """

    def __init__(self, output_dir: str | Path, keep: int = 2) -> None:
        self.path = Path(output_dir) / "checkpoints"
        self.keep = keep

    def all(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        found: dict[int, Path] = {}
        for path in self.path.glob("step_*"):
            name = _NAME.fullmatch(path.name)
            if name and (name[2] is None or int(name[1]) not in found):
                found[int(name[1])] = path
        return [found[step] for step in sorted(found)]

    def remove_leftovers(self) -> None:
        """Clears away what a killed process left half done; call when nobody writes."""
        for path in self.path.glob(".step_*"):
            shutil.rmtree(path)
        for path in self.path.glob("step_*" + _REPLACED):
            final = path.with_name(path.name.removesuffix(_REPLACED))
            if final.exists():
                self._remove(path)
            else:
                replace(path, final)

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        write_weights: Callable[[Path], Any],
        *,
        protected: int | None = None,
    ) -> Path:
        """Writes a checkpoint, then removes those that are too many.

        Args:
            step: optimizer steps done.
            state: plain containers and tensors (read back with ``weights_only=True``).
            write_weights: writes the weights into the checkpoint's folder, which it is given.
            protected: the step of a checkpoint that stays, however old.

        Raises:
            OSError: it could not be written (no space left); earlier checkpoints are untouched
                and the message names the newest.
        """
        final = self.path / f"step_{step:08d}"
        aside = final.with_name("." + final.name)
        before = self.all()
        try:
            shutil.rmtree(aside, ignore_errors=True)
            make_folder(self.path)
            aside.mkdir()
            write_weights(aside)
            torch.save(dict(state), aside / STATE)
            _write_manifest(aside)
            sync_tree(aside)
            self._put_in_place(aside, final)
        except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is any of them
            shutil.rmtree(aside, ignore_errors=True)
            raise _not_saved(step, error, before) from error
        kept = {path.name for path in self.all()[-self.keep :]} | {f"step_{protected or 0:08d}"}
        for path in self.all():
            if path.name not in kept:
                self._remove(path)
        return final

    def _put_in_place(self, aside: Path, final: Path) -> None:
        replaced = final.with_name(final.name + _REPLACED)
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            replace(final, replaced)
        replace(aside, final)
        shutil.rmtree(replaced, ignore_errors=True)

    def _remove(self, path: Path) -> None:
        """Removes a checkpoint, which is none any more as soon as this begins."""
        removed = path.with_name(f".{path.name}.removed")
        shutil.rmtree(removed, ignore_errors=True)
        replace(path, removed)
        shutil.rmtree(removed, ignore_errors=True)

    def load(self, *, verify: bool = True) -> tuple[Path, dict[str, Any]]:
        """The newest checkpoint's folder and state.

        Args:
            verify: whether to compare its files with their checksums (one process is enough).

        Raises:
            ConfigError: there is none, or the newest is damaged; the message names the one before.
        """
        found = self.all()
        if not found:
            raise ConfigError(
                f"resume: true needs a checkpoint under {self.path}, but there is none; start "
                "without resume"
            )
        damage = _damage(found[-1]) if verify else None
        if damage:
            remedy = (
                f"the one before is {found[-2]}: move the damaged folder away to go on from there"
                if found[1:]
                else "there is no earlier one: start anew in another output_dir"
            )
            raise ConfigError(
                f"resume: true goes on after the newest checkpoint, which must be whole, but "
                f"{found[-1]} is damaged ({damage}); {remedy}"
            )
        return found[-1], torch.load(found[-1] / STATE, map_location="cpu", weights_only=True)


class CheckpointWriter:
    """Saves checkpoints, on request beside the training.

    Args:
        checkpoints: where to.
        background: whether a thread of its own writes.
    """

    def __init__(self, checkpoints: Checkpoints, *, background: bool = False) -> None:
        self._checkpoints = checkpoints
        self._pool = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._pending: Future[Path] | None = None

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        snapshot: Callable[..., Callable[[Path], Any]],
        *,
        protected: int | None = None,
    ) -> None:
        """As :meth:`Checkpoints.save`; in the background once the save before has ended.

        Args:
            snapshot: called at once, with ``copy=True`` where the weights will change while they
                are written; what it returns writes them into the folder that it is given.

        Raises:
            OSError: this one could not be written, or in the background the one before.
        """
        self.wait()
        if self._pool is None:
            self._checkpoints.save(step, state, snapshot(copy=False), protected=protected)
            return
        frozen, write = copied(state), snapshot(copy=True)
        self._pending = self._pool.submit(
            self._checkpoints.save, step, frozen, write, protected=protected
        )

    def wait(self) -> None:
        """Returns when nothing is being written; raises what went wrong with the last save."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits and ends the thread."""
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()


def copied(value: Any) -> Any:
    """A state as it is now: containers and tensors copied, tensors into the CPU's memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: copied(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(part) for part in value)
    return value


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {str(path.relative_to(folder)): file_hash(path) for path in files}
    write_atomically(folder / MANIFEST, json.dumps({"sha256": sums}, indent=1) + "\n")


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is whole."""
    try:
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"no readable {MANIFEST}: {error}"
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if file_hash(path) != expected:
            return f"{name} is not what was written"
    return None


def _not_saved(step: int, error: Exception, before: list[Path]) -> OSError:
    kept = (
        f"the last good one is {before[-1]}. Free some space, then set resume: true"
        if before
        else "there is no earlier one. Free some space or choose another output_dir"
    )
    code = getattr(error, "errno", None) or errno.EIO
    return OSError(code, f"checkpoint of step {step} was not saved ({error}); {kept}")
