"""The evaluation recipe: figures of known policies, comparisons, held-out steps, a real run."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from loading import load_module
from omegaconf import OmegaConf

from sad_components.training.config import ConfigError
from sad_components.trajectory import read_jsonl

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
INSTALLED = all(importlib.util.find_spec(name) for name in ("alfworld", "textworld"))
needs_engine = pytest.mark.skipif(not INSTALLED, reason="household extra not installed")
POLICIES = "sad_components.evaluation.policies"
MODEL = {
    "_component_": "sad_components.models.from_scratch",
    "seed": 1,
    "config": {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1.0e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
}
TOKENIZER = {
    "_component_": "sad_components.data.HFTokenizer",
    "path": "shipped:household/tokenizer",
}


@pytest.fixture(scope="module")
def recipe_class():
    return load_module("recipes/evaluate_agent.py").EvaluateAgentRecipe


@pytest.fixture
def cfg(tmp_path):
    cfg = OmegaConf.load(CONFIGS / "household" / "evaluate_random.yaml")
    cfg.environment = {"name": "rooms.Rooms", "options": {"tasks": 12}, "batch_size": 5}
    cfg.tasks = {"count": 12}
    cfg.output_dir = str(tmp_path / "run")
    return cfg


def evaluate(recipe_class, cfg):
    recipe = recipe_class(cfg)
    recipe.setup()
    recipe.evaluate()
    recipe.cleanup()
    return json.loads(Path(cfg.output_dir, "results.json").read_text())


def test_results_of_known_policies(recipe_class, cfg, capsys):
    got = evaluate(recipe_class, cfg)
    assert list(got["policies"]) == ["expert", "random"]
    expert = got["policies"]["expert"]
    assert (expert["success"]["won"], expert["success"]["episodes"]) == (12, 12)
    assert expert["success"]["low"] == pytest.approx(0.7575, abs=1e-3)
    assert expert["steps"] == 2
    assert expert["reasoning_unit"] == "tokens"
    comparison = got["comparisons"][0]
    assert (comparison["a"], comparison["b"], comparison["pairs"]) == ("expert", "random", 12)
    assert comparison["only_b"] == 0
    printed = capsys.readouterr().out
    assert "100.0% [75.8%, 100.0%]" in printed
    assert "expert - random:" in printed
    folder = Path(cfg.output_dir) / "expert"
    episodes = [json.loads(line) for line in (folder / "episodes.jsonl").open()]
    assert [e["task"] for e in episodes] == [str(n) for n in range(12)]
    assert all(t.success for t in read_jsonl(folder / "trajectories.jsonl"))


def test_the_same_seed_gives_the_same_episodes(recipe_class, cfg, tmp_path):
    cfg.policies = {"random": cfg.policies.random}
    files = []
    for name, batch in (("a", 1), ("b", 7)):
        cfg.output_dir, cfg.environment.batch_size = str(tmp_path / name), batch
        evaluate(recipe_class, cfg)
        files.append((tmp_path / name / "random" / "trajectories.jsonl").read_bytes())
    assert files[0] == files[1]


def test_a_model_gets_every_figure(recipe_class, cfg, tmp_path):
    heldout = tmp_path / "heldout.jsonl"
    from sad_components.envs.household import shipped
    from sad_components.trajectory import write_jsonl

    write_jsonl(heldout, list(read_jsonl(shipped("heldout")))[:3])
    cfg.policies = {
        "student": {
            "_component_": f"{POLICIES}.model_policy",
            "model": MODEL,
            "tokenizer": TOKENIZER,
            "transform": {"style": "plain"},
            "max_new_tokens": 10,
        },
        "same": "${policies.student}",
    }
    cfg.tasks.count = 3
    cfg.heldout = {"source": str(heldout), "limit": 3}
    cfg.teacher = MODEL
    got = evaluate(recipe_class, cfg)
    student = got["policies"]["student"]
    assert student["success"]["won"] == 0
    assert student["agent_tokens"] > 0
    assert student["tokens_per_s"] > 0
    figures = student["heldout"]
    assert figures["steps"] > 10
    assert figures["step_accuracy"] == 0  # random weights write no action
    assert figures["first_divergent_step"] == 1
    assert figures["kl_reason"] == pytest.approx(0, abs=1e-5)  # the teacher is the same model
    assert 0 <= figures["action_match"] < 0.5
    comparison = got["comparisons"][0]
    assert (comparison["diverged"], comparison["mcnemar_p"]) == (0, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"environment": {"wokers": 1}}, "workers"),
        ({"policies": {}}, "at least one policy"),
        ({"compare": [["expert", "nobody"]]}, "pairs of expert, random"),
        ({"policy": 1}, "policies"),
    ],
)
def test_configs_that_cannot_be(recipe_class, cfg, change, message):
    if "policies" in change:
        cfg.policies = {}
    cfg = OmegaConf.merge(cfg, change)
    with pytest.raises(ConfigError, match=message):
        recipe_class(cfg).setup()


def test_existing_results_are_not_lost(recipe_class, cfg):
    evaluate(recipe_class, cfg)
    with pytest.raises(ConfigError, match="would be lost"):
        recipe_class(cfg).setup()
    cfg.overwrite = True
    evaluate(recipe_class, cfg)


@needs_engine
def test_run_from_the_command_line(tmp_path):
    command = [str(Path(sys.executable).with_name("tune")), "run", "recipes/evaluate_agent.py"]
    command += ["--config", "household/evaluate_expert", "tasks.count=6"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "runs/evaluate/household_expert/results.json").read_text())
    expert = results["policies"]["expert"]
    assert expert["success"]["won"] == 6
    assert len(expert["by_task_type"]) == 6


@pytest.mark.parametrize(
    ("name", "policy", "won"),
    [
        ("hotpotqa/evaluate_gold", "gold", 12),
        ("webshop/evaluate_gold", "gold", 10),
        ("tiny/evaluate_agent", "gold", 2),
    ],
)
def test_shipped_configs_give_what_they_say(recipe_class, tmp_path, name, policy, won):
    cfg = OmegaConf.load(CONFIGS / f"{name}.yaml")
    cfg.output_dir = str(tmp_path / "run")
    got = evaluate(recipe_class, cfg)["policies"]
    assert got[policy]["success"]["won"] == got[policy]["success"]["episodes"] == won
    if "tiny" in got:
        assert got["tiny"]["heldout"]["steps"] > 10
        assert got["tiny"]["agent_tokens"] == 2 * 3 * 16
        assert got["tiny"]["parameters"] == 106_816
    else:
        assert got["random"]["success"]["won"] < won
