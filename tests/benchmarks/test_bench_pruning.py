"""The pruning benchmark compares students on the same held-out rows."""

import json
import os
import shutil

import pytest
from hf_families import reference
from loading import load_module

from sad_components.data.shipped import resolve_folder


@pytest.fixture
def teacher(tmp_path):
    folder = tmp_path / "teacher"
    reference("smollm2", vocab_size=512, max_position_embeddings=512).save_pretrained(folder)
    for file in resolve_folder("shipped:household/tokenizer").iterdir():
        shutil.copyfile(file, folder / file.name)
    return folder


def test_every_way_gives_a_row(teacher, tmp_path, capsys):
    out = tmp_path / "bench.jsonl"
    ways = ["first", "influence", "influence-again", "kl"]
    small = ["--rows", "1", "--heldout-rows", "2", "--max-seq-len", "300", "--style", "plain"]
    data = ["--data", "shipped:household/heldout", "--layers", "3", "1", "--ways", *ways]
    bench = load_module("benchmarks/bench_pruning.py")
    assert bench.main([str(teacher), *data, *small, "--json", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [(row["way"], row["layers"]) for row in rows] == [(w, n) for w in ways for n in (3, 1)]
    for row in rows:
        assert len(row["kept"]) == row["layers"]
        assert (row["kl_reason"] < 1e-5) == (row["layers"] == 3)
    assert rows[0]["parameters"] > rows[1]["parameters"]
    assert "way=kl layers=1" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif("SAD_DEMO_DIR" not in os.environ, reason="SAD_DEMO_DIR is not set")
def test_importance_starts_nearer_to_smollm2_than_even_layers(tmp_path):
    out = tmp_path / "bench.jsonl"
    small = ["--rows", "4", "--heldout-rows", "4", "--layers", "20", "--json", str(out)]
    bench = load_module("benchmarks/bench_pruning.py")
    assert bench.main([os.environ["SAD_DEMO_DIR"], "--ways", "even", "influence", *small]) == 0
    even, influence = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    for kl in ("kl_reason", "kl_act"):
        assert influence[kl] < even[kl] / 2
