"""The script that kills runs: with few kills here, with twenty by hand."""

from __future__ import annotations

import json

import pytest
from loading import load_module


@pytest.mark.slow
@pytest.mark.parametrize("background", ["false", "true"])
def test_killed_and_resumed_runs_end_with_the_undisturbed_weights(tmp_path, background):
    script = load_module("benchmarks/kill_recipe.py")
    overrides = ["epochs=3", f"async_save={background}"]
    report = script.check(3, "tiny/structured_kd", overrides, 1, tmp_path)
    assert report["equal"]
    assert len(report["kills"]) == 3
    assert report["finished_runs"] >= 1
    assert json.loads(json.dumps(report)) == report


def test_other_weights_are_not_called_equal(tmp_path, monkeypatch):
    script = load_module("benchmarks/kill_recipe.py")
    hashes = iter(["undisturbed", "other"])
    monkeypatch.setattr(script, "start", lambda *args: None)
    monkeypatch.setattr(script, "finish", lambda process: None)
    monkeypatch.setattr(script, "run_and_kill", lambda *args: {"moment": "saving", "left": []})
    monkeypatch.setattr(script, "weights_hash", lambda folder: next(hashes))
    with pytest.raises(SystemExit, match="after 2 kills the weights differ"):
        script.check(2, "tiny/structured_kd", [], 0, tmp_path)
