"""The collecting recipe: what it refuses, budgets, resuming, and a run from the command line."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from loading import load_module
from omegaconf import OmegaConf

from sad_components.envs.household import shipped
from sad_components.training.config import ConfigError
from sad_components.trajectory import read_jsonl

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "collect_trajectories.py"
CONFIGS = ROOT / "configs" / "household"
INSTALLED = all(importlib.util.find_spec(name) for name in ("alfworld", "textworld"))
needs_engine = pytest.mark.skipif(not INSTALLED, reason="household extra not installed")


@pytest.fixture(scope="module")
def recipe_class():
    return load_module("recipes/collect_trajectories.py").CollectTrajectoriesRecipe


@pytest.fixture
def cfg(tmp_path):
    """The shipped config, in an environment that needs no engine."""
    cfg = OmegaConf.load(CONFIGS / "collect_heldout.yaml")
    cfg.environment = {"name": "rooms.Rooms", "options": {"tasks": 30}, "batch_size": 4}
    cfg.output = str(tmp_path / "out.jsonl")
    cfg.budget.episodes = 10
    return cfg


def run(recipe_class, cfg, **changes):
    cfg = OmegaConf.merge(cfg, changes)
    recipe = recipe_class(cfg)
    recipe.setup()
    recipe.collect()
    recipe.cleanup()
    return list(read_jsonl(cfg.output)) if Path(cfg.output).exists() else []


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_shipped_configs_are_accepted(recipe_class, split):
    cfg = OmegaConf.load(CONFIGS / f"collect_{split}.yaml")
    assert recipe_class(cfg).episodes == {"train": 300, "heldout": 60}[split]
    assert cfg.environment.options.split == split


@pytest.mark.parametrize(
    ("where", "key", "message"),
    [("", "polcy", "policy"), ("environment", "worker", "workers"), ("budget", "games", "nobody")],
)
def test_a_key_that_nobody_reads_is_an_error(recipe_class, cfg, where, key, message):
    (cfg[where] if where else cfg)[key] = 1
    with pytest.raises(ConfigError, match=message):
        recipe_class(cfg)


def test_a_budget_is_needed(recipe_class, cfg):
    cfg.budget = {"episodes": None, "tokens": 0}
    with pytest.raises(ConfigError, match="a positive number of episodes, of tokens or both"):
        recipe_class(cfg)


def test_episodes_in_order_with_the_policys_name(recipe_class, cfg, capsys):
    got = run(recipe_class, cfg)
    assert [t.id for t in got] == [f"rooms-{n}" for n in range(10)]
    assert {t.teacher for t in got} == {"household-expert"}
    assert "10 trajectories added" in capsys.readouterr().out


def test_a_second_run_goes_on(recipe_class, cfg, capsys):
    first = run(recipe_class, cfg, budget={"episodes": 4})
    again = run(recipe_class, cfg)
    assert [t.to_dict() for t in again[:4]] == [t.to_dict() for t in first]
    assert [t.id for t in again] == [f"rooms-{n}" for n in range(10)]
    capsys.readouterr()
    assert len(run(recipe_class, cfg)) == 10
    out = capsys.readouterr().out
    assert "holds 10 trajectories: going on" in out
    assert "0 trajectories added" in out


def test_a_budget_of_tokens(recipe_class, cfg):
    # without a tokenizer words count: "Action: open door 0" has 4, a look 6 more with its thought
    got = run(recipe_class, cfg, budget={"episodes": None, "tokens": 30})
    words = sum(len(m.text.split()) for t in got for m in t.messages if m.role == "assistant")
    last = sum(len(m.text.split()) for m in got[-1].messages if m.role == "assistant")
    assert words - last < 30 <= words


def test_lost_games_are_dropped_counted_and_replaced(recipe_class, cfg, capsys):
    policy = {"_component_": "sad_components.evaluation.policies.RandomPolicy", "name": "random"}
    cfg.policy = policy
    kept = run(recipe_class, cfg, budget={"episodes": 3}, environment={"options": {"tasks": 4}})
    out = capsys.readouterr().out
    assert all(t.success for t in kept)
    entries = [json.loads(e) for e in Path(f"{cfg.output}.journal").read_text().splitlines()][1:]
    assert len(entries) > len(kept)
    assert out.count("dropped rooms-") == sum(not e["kept"] for e in entries)


def test_lost_games_are_kept_on_request(recipe_class, cfg):
    cfg.policy = {"_component_": "sad_components.evaluation.policies.RandomPolicy"}
    got = run(recipe_class, cfg, keep_only_successes=False)
    assert len(got) == 10
    assert not all(t.success for t in got)


def test_every_task_with_every_seed(recipe_class, cfg):
    cfg.policy = {"_component_": "sad_components.evaluation.policies.RandomPolicy"}
    got = run(recipe_class, cfg, keep_only_successes=False, seeds=[0, 1], budget={"episodes": 4})
    assert [t.id for t in got] == ["rooms-0", "rooms-0-s1", "rooms-1", "rooms-1-s1"]


def test_running_out_of_tasks_is_said(recipe_class, cfg, capsys):
    got = run(recipe_class, cfg, environment={"options": {"tasks": 5}})
    assert len(got) == 5
    assert "tasks or patience ran out at 5 trajectories" in capsys.readouterr().out


def test_existing_output_is_not_lost(recipe_class, cfg):
    Path(cfg.output).write_text("mine\n")
    cfg.resume = False
    with pytest.raises(ValueError, match="set resume=True"):
        recipe_class(cfg).setup()
    assert Path(cfg.output).read_text() == "mine\n"


@needs_engine
def test_the_shipped_file_can_be_made_again(tmp_path):
    output = tmp_path / "folder" / "some.jsonl"
    command = [sys.executable, str(RECIPE), "--config", str(CONFIGS / "collect_heldout.yaml")]
    command += [f"output={output}", "budget.episodes=6", "environment.batch_size=3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"6 trajectories added -> {output}" in done.stdout
    lines = shipped("heldout").read_text(encoding="utf-8").splitlines()[:6]
    assert output.read_text(encoding="utf-8").splitlines() == lines


def test_a_users_error_is_one_line(tmp_path):
    command = [sys.executable, str(RECIPE), "--config", str(CONFIGS / "collect_heldout.yaml")]
    done = subprocess.run(
        [*command, "environment.name=houshold"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "no environment 'houshold'; there are household" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("key", ["environment", "policy", "budget", "output"])
def test_missing_keys_are_named(recipe_class, cfg, key):
    del cfg[key]
    with pytest.raises(ValueError, match=f"needs these keys: {key}"):
        recipe_class(cfg)
