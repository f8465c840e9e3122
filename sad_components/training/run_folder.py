"""The output folder of a run: one run each, written so that a failure loses nothing.

::

    output_dir/
      config.yaml          the resolved config
      metrics.jsonl        one JSON object per logged step
      summary.json         what came of the run
      checkpoints/step_00000040/   student/ (Hugging Face format) or adapters.safetensors; state.pt;
                           manifest.json (sad_components.training.checkpoints)
      student/             the finished student in Hugging Face format
      adapter/             of a student with adapters: they alone, as PEFT loads them
      base/                what they belong on, where that is no folder of its own
      quantized/           with qat: the quantised student (sad_components.models.quantized)
      nonfinite_step_7.json  rows of a step whose loss or gradient was not finite
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sad_components.training.checkpoints import Checkpoints
from sad_components.training.config import ConfigError
from sad_components.training.durable import make_folder, sync, write_atomically

_RUN_FILES = (
    *("config.yaml", "metrics.jsonl", "summary.json"),
    *("checkpoints", "student", "adapter", "base", "quantized"),
)


class RunFolder:
    """Paths and safe writes of one run.

    Args:
        path: the folder; made if missing.
        resume: go on with the run that is there; else a folder that holds a run is refused.
            ``"auto"``: go on if there is a checkpoint, else begin, also where a run was stopped
            before its first one.
        keep: how many checkpoints stay; the oldest go first.

    Raises:
        ConfigError: the folder holds another run and ``resume`` is false, there is nothing to
            resume, or ``resume`` is none of these.
    """

    def __init__(self, path: str | Path, *, resume: bool | str = False, keep: int = 2) -> None:
        if resume not in (True, False, "auto"):
            raise ConfigError(f"resume is true, false or auto; got {resume!r}")
        self.path = Path(path)
        self.checkpoints = Checkpoints(path, keep)
        self._metrics = self.path / "metrics.jsonl"
        found = [name for name in _RUN_FILES if (self.path / name).exists()]
        goes_on = resume and self.checkpoints.all()
        begins = not found or (resume == "auto" and "summary.json" not in found)
        if resume is True and not goes_on:
            raise ConfigError(
                f"resume: true needs a checkpoint under {self.checkpoints.path}, but there is "
                "none; start without resume, or with resume: auto"
            )
        if not goes_on and not begins:
            raise ConfigError(
                f"output_dir must be a new folder, but {self.path} holds another run "
                f"({', '.join(found)}): choose another output_dir, or set resume: true to go on "
                "with that run"
            )
        make_folder(self.path)
        self.checkpoints.remove_leftovers()
        if not goes_on:
            self._metrics.unlink(missing_ok=True)

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
        """Appends one line to metrics.jsonl; NaN and infinity, which JSON has not, become null."""
        finite = {k: None if _is_nonfinite(v) else v for k, v in record.items()}
        with open(self._metrics, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(finite) + "\n")

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
        self.write_json("summary.json", summary)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a file of its own, as a whole."""
        write_atomically(self.path / name, json.dumps(content, indent=2) + "\n")

    def sync_metrics(self) -> None:
        """Waits until the lines of metrics.jsonl are on the disk."""
        if self._metrics.exists():
            sync(self._metrics)


def _is_nonfinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _step_of(line: str) -> float:
    """The step of a line of metrics; infinity if the line is broken."""
    try:
        return json.loads(line).get("step", 0)
    except json.JSONDecodeError:
        return math.inf
