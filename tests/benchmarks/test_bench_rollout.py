"""The rollout benchmark runs and compares like with like (its speed is no test)."""

import json

import pytest
from loading import load_module


@pytest.fixture
def bench():
    return load_module("benchmarks/bench_rollout.py")


def test_batched_and_single_write_the_same(bench, tmp_path, capsys):
    out = tmp_path / "bench.json"
    small = ["--episodes", "16", "--batch-size", "16", "--steps", "4", "--tokens", "12"]
    assert bench.main([*small, "--dim", "64", "--repeats", "2", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["same_transcripts"]
    assert report["single"]["tokens"] == report["batched"]["tokens"] == 16 * 4 * 12
    assert report["speedup"] > 0
