"""The command that makes household agents (``make household-agent``), in miniature."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
from loading import load_module
from omegaconf import OmegaConf

from sad_components import cli
from sad_components.data.shipped import resolve_source
from sad_components.models import from_pretrained
from sad_components.models.hidden import num_parameters

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "household"
MAKEFILE = (ROOT / "Makefile").read_text().replace("\\\n", " ")
INSTALLED = all(importlib.util.find_spec(name) for name in ("alfworld", "textworld"))


def run(recipe: str, cls: str, method: str, config: str, *overrides: str):
    """A recipe on a shipped config with ``overrides``."""
    cfg = OmegaConf.merge(
        OmegaConf.load(CONFIGS / f"{config}.yaml"), OmegaConf.from_dotlist(list(overrides))
    )
    instance = getattr(load_module(f"recipes/{recipe}.py"), cls)(cfg)
    try:
        instance.setup(cfg) if recipe == "structured_kd" else instance.setup()
        getattr(instance, method)()
    finally:
        instance.cleanup()
    return instance


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tokenizer, teacher and student, made as the Makefile makes them but for the sizes of data."""
    folder = tmp_path_factory.mktemp("household")
    shutil.copy(resolve_source("shipped:household/train"), folder / "expert.jsonl")
    shutil.copy(resolve_source("shipped:household/heldout"), folder / "heldout.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOUSEHOLD_RUN", str(folder))
        line = next(x for x in MAKEFILE.split("\n") if "train-tokenizer" in x)
        argv = line.replace("$(HOUSEHOLD_RUN)", str(folder)).split()[1:]
        assert cli.main(argv) == 0
        short = ("max_steps=2", "heldout.limit=2")
        for config in ("train_teacher", "distil_student"):
            run("structured_kd", "StructuredKDRecipe", "train", config, *short)
        yield folder


def test_every_config_of_the_makefile_exists_and_none_is_left_out():
    named = set(re.findall(r"--config household/(\w+)", MAKEFILE))
    assert {"collect_teacher_data", "train_teacher", "distil_student"} <= named
    assert all((CONFIGS / f"{name}.yaml").is_file() for name in named)


def test_the_student_has_a_quarter_of_the_teachers_parameters(folder):
    teacher, student = (
        num_parameters(from_pretrained(folder / name / "student", dtype="fp32"))
        for name in ("teacher", "student")
    )
    assert 2e6 < teacher < 3.3e6
    assert 0.2 < student / teacher < 0.26


def test_the_student_learns_from_the_teacher(folder):
    summary = json.loads((folder / "student" / "summary.json").read_text())
    assert {"kl_reason", "kl_act"} <= set(summary["heldout"]["after"])
    assert (
        "kl_reason"
        not in json.loads((folder / "teacher" / "summary.json").read_text())["heldout"]["after"]
    )


def test_data_of_teacher_and_evaluation_are_disjoint():
    collect = OmegaConf.load(CONFIGS / "collect_teacher_data.yaml")
    evaluation = OmegaConf.load(CONFIGS / "evaluate_teacher.yaml")
    assert collect.environment.options.split == "train"
    assert evaluation.environment.options.split == "heldout"
    assert evaluation.tasks.count == 60
    assert collect.tasks.seed > 300  # behind the games that are shipped


@pytest.mark.skipif(not INSTALLED, reason="household extra not installed")
@pytest.mark.parametrize("config", ["evaluate_teacher", "evaluate_student"])
def test_the_agents_are_let_play(folder, config, monkeypatch):
    monkeypatch.setenv("HOUSEHOLD_RUN", str(folder))
    short = ("tasks.count=2", "environment.options.max_steps=2", "heldout.limit=1")
    run("evaluate_agent", "EvaluateAgentRecipe", "evaluate", config, *short)
    target = folder / f"{config.removeprefix('evaluate_')}_evaluation" / "results.json"
    results = json.loads(target.read_text())
    assert list(results["policies"])[-1] == config.removeprefix("evaluate_")
    free = {name: p for name, p in results["policies"].items() if "constrained" not in name}
    assert all("step_accuracy" in p["heldout"] for p in free.values())


@pytest.mark.skipif(not INSTALLED, reason="household extra not installed")
def test_the_experts_games_are_collected(tmp_path, monkeypatch):
    monkeypatch.setenv("HOUSEHOLD_RUN", str(tmp_path))
    budget = ("budget.episodes=2", "environment.workers=0")
    run(
        "collect_trajectories",
        "CollectTrajectoriesRecipe",
        "collect",
        "collect_teacher_data",
        *budget,
    )
    rows = [json.loads(line) for line in (tmp_path / "expert.jsonl").open()]
    assert len(rows) == 2
    assert all(row["success"] and row["meta"]["split"] == "train" for row in rows)


@pytest.mark.skipif(not INSTALLED, reason="household extra not installed")
def test_the_teacher_is_corrected_and_learns_from_it(folder, monkeypatch):
    monkeypatch.setenv("HOUSEHOLD_RUN", str(folder))
    short = ("budget.episodes=2", "environment.workers=0", "environment.options.max_steps=4")
    collecting = ("collect_trajectories", "CollectTrajectoriesRecipe", "collect")
    run(*collecting, "collect_corrections", *short)
    rows = [json.loads(line) for line in (folder / "corrections.jsonl").open()]
    assert all(row["meta"]["split"] == "train" for row in rows)
    turns = [message for row in rows for message in row["messages"][1::2]]
    assert 0 < sum(turn.get("weight") == 0 for turn in turns) < len(turns)
    run("structured_kd", "StructuredKDRecipe", "train", "correct_teacher", "max_steps=1")
    assert (folder / "corrected_teacher" / "student" / "config.json").is_file()
