"""Batched rollouts: the same transcripts, at least three times as fast as one at a time."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_rollout.py"


@pytest.fixture
def bench(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_rollout", SOURCE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_rollout", module)
    spec.loader.exec_module(module)
    return module


def test_batched_is_faster_and_the_same(bench, tmp_path, capsys):
    out = tmp_path / "bench.json"
    small = ["--episodes", "16", "--batch-size", "16", "--steps", "4", "--tokens", "12"]
    assert bench.main([*small, "--dim", "64", "--repeats", "2", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["same_transcripts"]
    assert report["single"]["tokens"] == report["batched"]["tokens"] == 16 * 4 * 12
    assert report["speedup"] >= 3
