"""The packing benchmark: every layout reads the same rows and learns the same."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from loading import ROOT


def test_layouts_learn_the_same_from_the_same_rows():
    small = ["--width", "64", "--layers", "1", "--vocab", "512", "--steps", "2", "--repeats", "1"]
    command = [sys.executable, ROOT / "benchmarks" / "bench_packing.py", "--json", *small]
    done = subprocess.run([*command, "--dtype", "fp64"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = [line for line in done.stdout.splitlines() if line.startswith("{")]
    rows = {row["layout"]: row for row in map(json.loads, printed)}
    assert rows["padded"]["times_padded"] == 1
    assert rows["padded"]["padding"] > 0
    for row in rows.values():
        assert row["tokens_per_s"] > 0
        assert row["largest_loss_difference"] < 1e-9
    packed = rows["packed, token budget"]
    assert packed["padding"] == pytest.approx(0, abs=0.02)
    assert packed["largest"] <= packed["settings"]["positions"]
