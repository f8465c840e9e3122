"""``sad doctor``'s memory estimate against the measured peak of real runs on the CPU.

Each run trains a random student for two steps in a process of its own; its largest resident size
stands beside the estimate, which another process made before.

    python benchmarks/bench_memory_estimate.py --json
    python benchmarks/bench_memory_estimate.py --config structured_kd_lora student.use_dora=true
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Width and layers of the student, rows a batch; the teacher has twice as many layers.
SIZES = [(384, 8, 4), (512, 10, 4), (640, 12, 1)]
_MEASURE = (
    "import atexit, resource, runpy, sys; sys.argv = sys.argv[1:]\n"
    "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
    "atexit.register(lambda: print('peak', peak()))\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


def overrides(width: int, layers: int, rows: int, folder: str) -> list[str]:
    """The tiny config with larger random models, two steps and no scores."""
    changed = [f"output_dir={folder}/run", "heldout=null", "max_steps=2", f"batch_size={rows}"]
    changed += ["dataset.limit=8"]
    for name, depth in (("student", layers), ("teacher", 2 * layers)):
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": depth}
        sizes |= {"num_attention_heads": width // 64, "num_key_value_heads": width // 64}
        changed += [f"{name}.config.{key}={value}" for key, value in sizes.items()]
    return changed


def compare(
    width: int, layers: int, rows: int, config: str = "structured_kd", extra: Sequence[str] = ()
) -> dict[str, float]:
    """Estimated and measured bytes of one run, and their relative difference."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    config = str(ROOT / "configs" / "tiny" / f"{config}.yaml")
    with tempfile.TemporaryDirectory() as folder:
        changed = [*overrides(width, layers, rows, folder), *extra]
        doctor = [sys.executable, "-m", "sad_components.doctor", "--json", "--config", config]
        out = subprocess.run([*doctor, *changed], env=env, capture_output=True, text=True)
        checks = {c["name"]: c for c in json.loads(out.stdout)["checks"]}
        recipe = str(ROOT / "recipes" / "structured_kd.py")
        run = [sys.executable, "-c", _MEASURE, recipe, "--config", config, *changed]
        done = subprocess.run(run, env=env, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
    measured = int(done.stdout.rsplit("peak", 1)[1]) * 1024
    estimated = checks["memory"]["figures"]["total"]
    return {
        "student_parameters": checks["student"]["figures"]["parameters"],
        "teacher_parameters": checks["teacher"]["figures"]["parameters"],
        "estimated": estimated,
        "measured": measured,
        "difference": estimated / measured - 1,
    }


def main() -> None:
    """Prints a line a size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    parser.add_argument("--config", default="structured_kd", help="of configs/tiny")
    parser.add_argument("overrides", nargs="*", help="key=value, of the config")
    args = parser.parse_args()
    for width, layers, batch in SIZES:
        row = {"width": width, "layers": layers, "rows": batch}
        row |= compare(width, layers, batch, args.config, args.overrides)
        if args.json:
            print(json.dumps(row), flush=True)
            continue
        sizes = " ".join(f"{key} {row[key] / 1e6:.0f} MB" for key in ("estimated", "measured"))
        print(f"d {width} x {layers}: {sizes}, {row['difference']:+.1%}", flush=True)


if __name__ == "__main__":
    main()
