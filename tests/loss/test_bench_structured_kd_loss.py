"""The benchmark of the structured loss runs, and its methods agree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_structured_kd_loss.py"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_quick_run_gives_a_json_line_per_method():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--json", "--rounds", "1", "--methods", "eager"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "liger and trl are skipped" in done.stderr
    rows = {row["method"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert set(rows) == {"bound", "ours", "eager"}
    for row in rows.values():
        assert row["case"] == "quick"
        assert row["seconds"] > 0
        assert row["extra_mb"] >= 0
        assert row["hardware"]["cores"] >= 1
        assert "torch" in row["versions"]
    assert rows["ours"]["loss"] == pytest.approx(rows["eager"]["loss"], rel=1e-5)
    assert rows["ours"]["extra_mb"] < rows["eager"]["extra_mb"]
