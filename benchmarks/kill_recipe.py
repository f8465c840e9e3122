"""Kills training runs at random points and shows that what comes of them is the same.

    python benchmarks/kill_recipe.py --kills 20
    python benchmarks/kill_recipe.py --kills 20 async_save=true

A run is a process of its own, ended by SIGKILL: at a random moment while it starts, while it
trains, or while it writes a checkpoint. The next one resumes it (``resume: auto``). A run that
comes to its end first is compared and another one begun, until all kills are done; the weights of
every finished one must equal, bit for bit, those of a run that nobody disturbed. Prints JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

#: 120 steps of few rows, a checkpoint after every second one: much of the time is saving.
SETTINGS = ("heldout=null", "metric_logger=null", "dataset.limit=24", "batch_size=2", "epochs=10")
SETTINGS = (*SETTINGS, "save_every_n_steps=2", "resume=auto")
#: When a run is killed, and how often in all of 10 times.
MOMENTS = {"starting": 1, "training": 4, "saving": 5}
#: Seconds that a moment may last: it is killed after a random part of them.
LASTS = {"starting": 8.0, "training": 3.0, "saving": 0.03}


def start(folder: Path, config: str, overrides: list[str]) -> subprocess.Popen:
    """``tune run structured_kd`` into ``folder``."""
    command = [sys.executable, "-m", "torchtune._cli.tune", "run", "recipes/structured_kd.py"]
    command += ["--config", config, f"output_dir={folder}", *SETTINGS, *overrides]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    """Waits for a run's end; it must end well."""
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"the recipe failed: {errors[-2000:]}")


def weights_hash(folder: Path) -> str:
    """SHA-256 of the finished student's weights."""
    return hashlib.sha256((folder / "student" / "model.safetensors").read_bytes()).hexdigest()


def size(file: Path) -> int:
    """Bytes of a file; 0 if it is not there."""
    return file.stat().st_size if file.exists() else 0


def newest(folder: Path) -> int:
    """The step of the newest checkpoint; 0 without one."""
    found = sorted((folder / "checkpoints").glob("step_*"))
    return int(found[-1].name[5:13]) if found else 0


def unfinished(folder: Path) -> list[str]:
    """What a killed save has left, and will be cleared away."""
    found = (folder / "checkpoints").glob("*")
    return sorted(path.name for path in found if not path.name[5:].isdigit())


def run_and_kill(
    folder: Path, config: str, overrides: list[str], rng: random.Random
) -> dict[str, Any] | None:
    """One attempt; None if the run came to its end before its moment did.

    Returns:
        When it was killed, the newest checkpoint's step then, and what a save had left undone.
    """
    moment = rng.choices(list(MOMENTS), list(MOMENTS.values()))[0]
    wait = rng.uniform(0, LASTS[moment])
    metrics = folder / "metrics.jsonl"
    logged, before = size(metrics), newest(folder)
    process = start(folder, config, overrides)

    def begun() -> bool:
        if moment == "starting":
            return True
        if moment == "training":
            return size(metrics) != logged
        return newest(folder) > before and bool(unfinished(folder))

    while process.poll() is None and not begun():
        time.sleep(0.003)
    time.sleep(wait)
    if process.poll() is not None:
        finish(process)
        return None
    process.kill()
    process.communicate()
    return {"moment": moment, "checkpoint": newest(folder), "left": unfinished(folder)}


def check(kills: int, config: str, overrides: list[str], seed: int, root: Path) -> dict[str, Any]:
    """Kills, resumes and compares; raises ``SystemExit`` if any finished run differs."""
    rng, folder, whole = random.Random(seed), root / "killed", root / "whole"
    finish(start(whole, config, overrides))
    expected = weights_hash(whole)
    found: list[dict[str, Any]] = []
    finished = 0
    while folder.exists() or len(found) < kills or not finished:
        if len(found) < kills:
            kill = run_and_kill(folder, config, overrides, rng)
            if kill is not None:
                found.append(kill)
                print(f"kill {len(found)} of {kills}: {kill}", file=sys.stderr)
                continue
        else:
            finish(start(folder, config, overrides))
        if weights_hash(folder) != expected:
            raise SystemExit(f"after {len(found)} kills the weights differ from the other run's")
        finished += 1
        shutil.rmtree(folder)
    return {
        "seed": seed,
        "config": config,
        "overrides": [*SETTINGS, *overrides],
        "kills": found,
        "moments": dict(Counter(kill["moment"] for kill in found)),
        "in_the_middle_of_a_save": sum(bool(kill["left"]) for kill in found),
        "finished_runs": finished,
        "weights_sha256": expected,
        "equal": True,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--config", default="tiny/structured_kd")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", help="as for tune run: key=value")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (options.kills, options.config, options.overrides, options.seed)
        print(json.dumps(check(*arguments, Path(folder)), indent=1))


if __name__ == "__main__":
    main()
