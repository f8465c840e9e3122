"""The benchmark of whole steps runs on tiny models; its methods need ever less work."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_recipe.py"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_tiny_run_gives_a_json_line_per_method():
    command = [sys.executable, SCRIPT, "--json", "--models", "tiny", "--steps", "2"]
    done = subprocess.run(
        [*command, "--repeats", "1", "--batch-size", "2", "--accumulation", "2"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert list(rows) == ["torchtune", "live", "cached"]
    for row in rows.values():
        assert row["steps"] == 2
        assert row["tokens_per_s"] > 0
        assert row["peak_mb"] > 0
        assert math.isfinite(row["loss"])
        assert row["bound_tokens_per_s"] > row["tokens_per_s"] * row["share_of_bound"] / 2
        assert row["versions"]["torchtune"] == "0.6.1"
    assert rows["torchtune"]["times_torchtune"] == 1
    flops = [rows[name]["gflop_per_token"] for name in ("torchtune", "live", "cached")]
    assert flops == sorted(flops, reverse=True)
