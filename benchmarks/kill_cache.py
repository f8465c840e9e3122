"""Kills the cache recipe at random points and shows that the finished cache is the same.

    python benchmarks/kill_cache.py --kills 10

Each attempt is a process of its own, ended by SIGKILL at a random moment of its work; then one
runs to its end, and every file is compared with those of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

#: Written by the recipe when it is done, with versions and nothing that training reads.
NOT_COMPARED = {"report.json"}


def command(folder: Path, config: str, overrides: list[str]) -> list[str]:
    """``tune run cache_teacher`` into ``folder``."""
    tune = [sys.executable, "-m", "torchtune._cli.tune", "run", "recipes/cache_teacher.py"]
    return [*tune, "--config", config, f"output_dir={folder}", *overrides]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a cache, by its path."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name not in NOT_COMPARED)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def run_and_kill(folder: Path, config: str, overrides: list[str], rng: random.Random) -> int:
    """Kills a run at a random moment after its first file of this attempt; shards there are then.

    A run that ends before its moment comes is no kill: -1.
    """
    before = len(list(folder.rglob("*.safetensors")))
    process = subprocess.Popen(
        command(folder, config, overrides), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and len(list(folder.rglob("*.safetensors"))) == before:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.1))
    if process.poll() is not None:
        return -1
    process.kill()
    process.wait()
    return len(list(folder.rglob("*.safetensors")))


def check(kills: int, config: str, overrides: list[str], seed: int, root: Path) -> list[int]:
    """Shards that were there after each kill; raises if the finished cache differs."""
    rng, folder, whole = random.Random(seed), root / "killed", root / "whole"
    found = []
    while len(found) < kills:
        left = run_and_kill(folder, config, overrides, rng)
        if left < 0:  # it finished: begin again, some kills still to come
            for path in sorted(folder.rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
        else:
            found.append(left)
    for target in (folder, whole):
        done = subprocess.run(command(target, config, overrides), capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"the recipe failed: {done.stderr[-2000:]}")
    mine, expected = contents(folder), contents(whole)
    differing = sorted(n for n in mine.keys() | expected.keys() if mine.get(n) != expected.get(n))
    if differing:
        raise SystemExit(f"the resumed cache differs from the undisturbed one in {differing}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--config", default="tiny/cache_teacher")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", help="as for tune run: key=value")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = check(options.kills, options.config, options.overrides, options.seed, Path(folder))
    print(f"{len(found)} kills with {found} shards written: the finished cache is the same")


if __name__ == "__main__":
    main()
