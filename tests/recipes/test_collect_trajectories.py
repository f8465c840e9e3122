"""The collecting recipe: what it refuses, and a run from the command line."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sad_components.envs.household import TASK_TYPES
from sad_components.training.config import ConfigError
from sad_components.trajectory import read_jsonl

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "collect_trajectories.py"
CONFIGS = ROOT / "configs" / "household"
INSTALLED = all(importlib.util.find_spec(name) for name in ("alfworld", "textworld"))
needs_engine = pytest.mark.skipif(not INSTALLED, reason="household extra not installed")


@pytest.fixture(scope="module")
def recipe_class():
    spec = importlib.util.spec_from_file_location("collect_trajectories_under_test", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CollectTrajectoriesRecipe


@pytest.fixture
def cfg(tmp_path):
    cfg = OmegaConf.load(CONFIGS / "collect_heldout.yaml")
    cfg.output = str(tmp_path / "out.jsonl")
    return cfg


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_shipped_configs_are_accepted(recipe_class, split, tmp_path):
    cfg = OmegaConf.load(CONFIGS / f"collect_{split}.yaml")
    cfg.output = str(tmp_path / "out.jsonl")
    recipe = recipe_class(cfg)
    recipe.setup()
    assert recipe.settings.split == split


def test_a_key_that_nobody_reads_is_an_error(recipe_class, cfg):
    cfg.wrong_turns = 0.5
    with pytest.raises(ConfigError, match="wrong_turn_share"):
        recipe_class(cfg)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_types": ["cook"]}, r"task_types is a non-empty list of .*; got \['cook'\]"),
        ({"task_types": []}, "task_types is a non-empty list"),
        ({"episodes": 61}, "multiple of the number of task types.* got 61 for 6 types"),
        ({"episodes": 0}, "positive multiple"),
    ],
)
def test_settings_that_cannot_be(recipe_class, cfg, change, message):
    cfg.merge_with(change)
    with pytest.raises(ValueError, match=message):
        recipe_class(cfg).setup()


def test_existing_output_is_not_lost(recipe_class, cfg):
    Path(cfg.output).write_text("mine\n")
    with pytest.raises(ValueError, match="exists and would be lost"):
        recipe_class(cfg).setup()
    assert Path(cfg.output).read_text() == "mine\n"


@needs_engine
def test_lost_games_are_dropped_counted_and_named(recipe_class, cfg, capsys):
    cfg.merge_with({"task_types": TASK_TYPES[1:2], "episodes": 1, "env": {"max_steps": 1}})
    recipe = recipe_class(cfg)
    recipe.setup()
    recipe.collect()
    recipe.cleanup()
    printed = capsys.readouterr().out
    assert "0 trajectories" in printed
    assert "dropped household-heldout-00001-dense: not won in 1 steps" in printed
    assert "dropped the rest: too many games were lost" in printed


@needs_engine
def test_run_from_the_command_line(tmp_path):
    output = tmp_path / "folder" / "some.jsonl"
    command = [sys.executable, str(RECIPE), "--config", str(CONFIGS / "collect_heldout.yaml")]
    command += [f"output={output}", "episodes=2", "style=sparse", "seed=60"]
    command += [f"task_types=[{TASK_TYPES[1]},{TASK_TYPES[0]}]"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    trajectories = list(read_jsonl(output))
    assert [t.id for t in trajectories] == [
        "household-heldout-00060-sparse",
        "household-heldout-00061-sparse",
    ]
    assert all(t.success for t in trajectories)
    assert f"2 trajectories -> {output}" in done.stdout
