"""The check for the first person with a GPU: here its rows on a CPU, and rows that go wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from loading import ROOT, load_module

SCRIPT = ROOT / "benchmarks" / "gpu_check.py"


@pytest.fixture
def script():
    return load_module("benchmarks/gpu_check.py")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA device")
def test_without_a_gpu_it_says_so(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    assert script.main() == 2
    printed = capsys.readouterr().out
    assert "no GPU: torch" in printed
    assert "--device cpu runs the rows that a CPU can run" in printed


def test_rows_that_a_cpu_can_run(tmp_path):
    """A switch of the recipe with its speed, the loss, and what needs a GPU."""
    names = ["nf4_lora", "fused_loss", "activation_offloading"]
    command = [sys.executable, SCRIPT, "--device", "cpu", "--only", *names]
    done = subprocess.run(
        [*command, "--limit", "600", "--minutes", "60", "--json", tmp_path / "rows.json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 ok, 1 not here" in done.stdout
    rows = {row["name"]: row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert list(rows) == ["prepare", *names]
    trained = rows["nf4_lora"]["figures"]
    assert trained["difference"] < 1e-3 < trained["limit"]
    assert trained["tokens_per_s"] > 0
    assert 0.5 < trained["memory_gb"] / trained["estimated_gb"] < 2
    assert 0 < rows["fused_loss"]["figures"]["difference"] < 1e-4
    assert "x its four products" in rows["fused_loss"]["figures"]["note"]
    assert rows["activation_offloading"]["reason"] == "activations are moved out of a GPU"


@pytest.fixture
def run(script, tmp_path):
    """A row whose process runs this code."""

    def run(code: str, limit_s: float = 60):
        return script.run_row("it", [sys.executable, "-c", code], tmp_path / "row", limit_s)

    return run


def reports(**figures) -> str:
    return f"open('figures.json', 'w').write({json.dumps(figures)!r})"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print('half done', flush=True); import os; os.abort()", "signal 6: half done"),
        ("raise SystemExit('no such kernel')", "exit code 1: no such kernel"),
        ("pass", "nothing was reported"),
        (reports(failed="ValueError: no"), "ValueError: no"),
        (reports(difference=0.02, limit=0.01), "too far from the CPU's result"),
        (reports(difference=float("nan"), limit=0.01), "too far from the CPU's result"),
    ],
)
def test_what_goes_wrong_is_a_row(run, code, reason):
    row = run(code)
    assert (row.result, row.reason) == ("FAIL", reason)
    assert reason in row.cells()[-1]


def test_a_row_that_hangs_is_ended_with_all_that_it_started(run, tmp_path):
    grandchild = "import time; time.sleep(9); open('grandchild.txt', 'w')"
    row = run(
        f"import subprocess, sys; {reports(difference=0.0, limit=1.0)}; "
        f"subprocess.run([sys.executable, '-c', {grandchild!r}])",
        limit_s=6,
    )
    assert (row.result, row.reason) == ("too slow", "ended after 6 s")
    assert row.figures == {"difference": 0.0, "limit": 1.0}  # what it had found out by then
    time.sleep(4)
    assert not Path(tmp_path / "row" / "grandchild.txt").exists()


def test_a_launcher_that_hangs_ends_its_processes_of_other_sessions(run, tmp_path):
    """As torchrun does: its processes are in no group of the row's."""
    launcher = (
        "import signal, subprocess, sys, time\n"
        "rank = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "open('rank.txt', 'w').write(str(rank.pid))\n"
        "def end(*_):\n    time.sleep(1); rank.kill(); rank.wait(); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "time.sleep(600)"
    )
    row = run(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {launcher!r}])", 6)
    assert row.result == "too slow"
    rank = (tmp_path / "row" / "rank.txt").read_text()
    assert not Path("/proc", rank).exists()


def test_what_time_does_not_reach_is_not_run(script, tmp_path, capsys):
    rows = script.check(["fp32", "bf16"], "cpu", "tiny", 0, 60, tmp_path)
    assert [row.result for row in rows] == ["not run"] * 3
    assert "0 minutes are over: --only bf16" in capsys.readouterr().out


def test_every_switch_with_golden_losses_has_a_row():
    rows = load_module("benchmarks/gpu_rows.py")
    switches = {row.golden for row in rows.ROWS.values() if isinstance(row, rows.Switch)}
    assert switches == set(rows.make_golden.SWITCHES)


def test_a_difference_is_the_largest_relative_one():
    rows = load_module("benchmarks/gpu_rows.py")
    assert rows.difference([1.0, 2.2], [1.0, 2.0]) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="zip"):
        rows.difference([1.0], [1.0, 2.0])  # a run that ended early is not near
