"""Mixtures, filters and stores under the recipes: the same run, wherever the rows lie."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from loading import load_module
from omegaconf import OmegaConf
from recipe_runs import run_recipe
from safetensors.torch import load_file

from sad_components.trajectory import Message, Trajectory, write_jsonl

TINY = Path(__file__).parents[2] / "configs" / "tiny"


@pytest.fixture(autouse=True)
def in_folder_with_data(tmp_path, monkeypatch):
    """The current folder has ``own.jsonl``: 4 rows won, one of them twice, and one lost."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for name, success in zip("abcad", (True, True, True, True, False)):
        turn = Message("assistant", f"Thought: I need {name}.\nAction: take {name}\n")
        task = Message("user", "Your task is to: tidy up.")
        rows.append(Trajectory([task, turn], id=f"{name}{len(rows)}", success=success))
    write_jsonl("own.jsonl", rows)


MIXTURE = {
    "sources": [
        {"source": "shipped:household/train", "limit": 6, "weight": 1},
        {"source": "own.jsonl", "weight": 2, "filters": {"success": True}},
    ],
    "filters": {"duplicates": "drop"},
}


def configured(name: str, *overrides: str, **nodes):
    cfg = OmegaConf.load(TINY / f"{name}.yaml")
    for key, node in nodes.items():
        cfg[key] = node
    return OmegaConf.merge(cfg, OmegaConf.from_dotlist(["heldout.limit=2", *overrides]))


def train(cfg) -> tuple[dict, dict[str, torch.Tensor]]:
    """structured_kd in this process: its summary and the student's weights."""
    run_recipe(cfg)
    folder = Path(cfg.output_dir)
    summary = json.loads((folder / "summary.json").read_text())
    return summary, load_file(folder / "student" / "model.safetensors")


def test_a_stored_mixture_trains_the_same_student(capsys):
    memory, expected = train(configured("structured_kd", "output_dir=memory", dataset=MIXTURE))
    printed = capsys.readouterr().out
    assert "mixture of 2 sources, 9 rows an epoch:" in printed
    assert "66.7% of an epoch, each row seen 2.00 times: own.jsonl: 3 of 5 rows" in printed
    assert "filtered out 1 (d4): success is false" in printed
    assert "filtered out 1 (a3): a duplicate of an earlier row" in printed
    assert memory["data"]["kept"] == 9
    assert memory["order"]["rows_per_source"] == [3, 6]
    stored = {**MIXTURE, "store": "tokenised"}
    cfg = configured("structured_kd", "output_dir=stored", dataset=stored)
    cfg.heldout.store = "tokenised"
    summary, found = train(cfg)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert summary["heldout"] == memory["heldout"]
    assert len(list(Path("tokenised").glob("mixture-*/store.json"))) == 1
    assert len(list(Path("tokenised").glob("heldout-*/store.json"))) == 1


def test_a_cache_is_made_of_a_stored_mixture_and_serves_it():
    stored = {**MIXTURE, "store": "tokenised"}
    cfg = configured("cache_teacher", "cache.mode=hidden", "student=null", dataset=stored)
    recipe = load_module("recipes/cache_teacher.py").CacheTeacherRecipe(cfg)
    recipe.setup(cfg)
    recipe.run()
    assert json.loads((Path(cfg.output_dir) / "report.json").read_text())["rows"] == 11
    summary, _ = train(configured("structured_kd_cached", "max_steps=2", dataset=stored))
    assert summary["steps"] == 2


def test_misspelt_keys_are_refused_at_every_depth():
    module = load_module("recipes/structured_kd.py")
    cases = {
        "dataset: MixedDataset takes no 'stroe'": {**MIXTURE, "stroe": "x"},
        r"sources\[0\] takes no 'limits'": {"sources": [{"source": "own.jsonl", "limits": 1}]},
        r"filters takes no 'max_step'": {"source": "own.jsonl", "filters": {"max_step": 1}},
    }
    for number, (message, node) in enumerate(cases.items()):
        cfg = configured("structured_kd", f"output_dir=run{number}", dataset=node)
        with pytest.raises(ValueError, match=message):
            module.StructuredKDRecipe(cfg).setup(cfg)
