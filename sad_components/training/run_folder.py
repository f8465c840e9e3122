"""The output folder of a run: one run each, written so that a failure loses nothing.

::

    output_dir/
      config.yaml          the resolved config
      metrics.jsonl        one JSON object per logged step
      summary.json         what came of the run
      checkpoints/step_00000040/   student/ (Hugging Face format) or adapters.safetensors; state.pt
      student/             the finished student in Hugging Face format
      adapter/             of a student with adapters: they alone, as PEFT loads them
      base/                what they belong on, where that is no folder of its own
      quantized/           with qat: the quantised student (sad_components.models.quantized)
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from sad_components.training.config import ConfigError

_STEP = "step_"
_RUN_FILES = (
    *("config.yaml", "metrics.jsonl", "summary.json"),
    *("checkpoints", "student", "adapter", "base", "quantized"),
)


class RunFolder:
    """Paths and safe writes of one run.

    Args:
        path: the folder; made if missing.
        resume: go on with the run that is there; else a folder that holds a run is refused.
        keep: how many checkpoints stay; the oldest go first.

    Raises:
        ConfigError: the folder holds another run and ``resume`` is false, or there is nothing to
            resume.
    """

    def __init__(self, path: str | Path, *, resume: bool = False, keep: int = 2) -> None:
        self.path = Path(path)
        self.keep = keep
        there = [name for name in _RUN_FILES if (self.path / name).exists()]
        if there and not resume:
            raise ConfigError(
                f"output_dir must be a new folder, but {self.path} holds another run "
                f"({', '.join(there)}): choose another output_dir, or set resume: true to go on "
                "with that run"
            )
        if resume and not self.checkpoints():
            raise ConfigError(
                f"resume: true needs a checkpoint under {self.path / 'checkpoints'}, but there is "
                "none; start without resume"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._metrics = self.path / "metrics.jsonl"

    @property
    def student(self) -> Path:
        return self.path / "student"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def base(self) -> Path:
        return self.path / "base"

    @property
    def quantized(self) -> Path:
        return self.path / "quantized"

    def write_config(self, cfg: DictConfig) -> None:
        """The resolved config as YAML."""
        write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))

    def log(self, record: dict[str, Any]) -> None:
        """Appends one line to metrics.jsonl."""
        with open(self._metrics, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(record) + "\n")

    def forget_after(self, step: int) -> None:
        """Drops metrics of steps behind ``step``: a resumed run writes them anew.

        A line that a kill or a full disk cut short is dropped too.
        """
        if not self._metrics.exists():
            return
        lines = self._metrics.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        write_atomically(self._metrics, "".join(line + "\n" for line in kept))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """summary.json, replaced as a whole."""
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")

    def checkpoints(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob(_STEP + "*"))

    def save_checkpoint(
        self, step: int, state: dict[str, Any], write_weights: Callable[[Path], None]
    ) -> Path:
        """Writes a checkpoint aside, then renames it into place.

        Args:
            step: optimizer steps done.
            state: plain containers and tensors (read back with ``weights_only=True``).
            write_weights: writes the weights into the checkpoint's folder, which it is given.

        Raises:
            OSError: it could not be written (no space left); earlier checkpoints are untouched
                and the message names the newest.
        """
        final = self.path / "checkpoints" / f"{_STEP}{step:08d}"
        aside = final.with_name("." + final.name)
        before = self.checkpoints()
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            write_weights(aside)
            with open(aside / "state.pt", "wb") as handle:
                torch.save(state, handle)
                handle.flush()
                os.fsync(handle.fileno())
            shutil.rmtree(final, ignore_errors=True)
            os.replace(aside, final)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            shutil.rmtree(aside, ignore_errors=True)
            kept = (
                f"the last good one is {before[-1]}. Free some space, then set resume: true"
                if before
                else "there is no earlier one. Free some space or choose another output_dir"
            )
            code = getattr(error, "errno", None) or errno.EIO
            raise OSError(
                code,
                f"checkpoint of step {step} was not saved ({error}); {kept}",
            ) from error
        for old in self.checkpoints()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def load_checkpoint(self) -> tuple[Path, dict[str, Any]]:
        """The newest checkpoint's folder and state."""
        newest = self.checkpoints()[-1]
        state = torch.load(newest / "state.pt", map_location="cpu", weights_only=True)
        return newest, state


def _step_of(line: str) -> float:
    """The step of a line of metrics; infinity if the line is broken."""
    try:
        return json.loads(line).get("step", 0)
    except json.JSONDecodeError:
        return math.inf


def write_atomically(path: Path, text: str) -> None:
    """Replaces a text file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    with open(aside, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(aside, path)
