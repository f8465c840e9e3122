"""The line on memory at a run's start: there, right about what does not fit, and never fatal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from loading import load_module
from omegaconf import OmegaConf

from sad_components.data import StepOrder
from sad_components.models import from_scratch
from sad_components.training import memory, preflight
from sad_components.training.memory import available_bytes, first_steps

TINY = Path(__file__).parents[2] / "configs" / "tiny" / "structured_kd.yaml"


def reads_weights(**config):
    """A builder that the meta device stops: it wants to know what is in its weights."""
    model = from_scratch(config)
    if float(next(model.parameters()).detach().sum()) == 0:
        raise AssertionError("random weights do not add up to 0")
    return model


def at_setup(capsys, *overrides: str) -> str:
    """What the tiny config's run prints before its first step."""
    few = ("dataset.limit=4", "heldout.limit=2", "metric_logger=null", *overrides)
    cfg = OmegaConf.merge(OmegaConf.load(TINY), OmegaConf.from_dotlist(list(few)))
    recipe = load_module("recipes/structured_kd.py").StructuredKDRecipe(cfg)
    try:
        recipe.setup(cfg)
    finally:
        recipe.cleanup()
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_run_says_what_it_needs_and_what_there_is(capsys, monkeypatch):
    monkeypatch.setattr(preflight, "available_bytes", lambda device, processes: 32_000_000_000)
    monkeypatch.setattr(preflight, "base_bytes", lambda device: 7_000_000_000)
    printed = at_setup(capsys)
    assert "memory: about 7.1 GB estimated, 32.0 GB available" in printed
    assert "will probably not fit" not in printed


def test_a_run_that_does_not_fit_is_warned_and_goes_on(capsys, monkeypatch):
    monkeypatch.setattr(preflight, "available_bytes", lambda device, processes: 50_000_000)
    printed = at_setup(capsys)
    assert "estimated, 50 MB available" in printed
    assert "warning: this will probably not fit; `sad doctor` says what would help" in printed
    assert "batches: " in printed  # the line that comes after the models


def test_a_builder_that_needs_weights_gives_no_estimate(capsys, monkeypatch):
    monkeypatch.setattr("sad_components.models.reads_weights", reads_weights, raising=False)
    config = OmegaConf.to_container(OmegaConf.load(TINY).student.config)
    student = {"_component_": "sad_components.models.reads_weights", **config}
    printed = at_setup(capsys, f"student={student}")
    assert "memory: not estimated (" in printed
    assert "meta" in printed.split("not estimated")[1].splitlines()[0]
    assert "batches: " in printed


def test_processes_share_a_cpus_memory():
    own = memory._process_memory("VmRSS")
    one, four = (available_bytes(torch.device("cpu"), n) - own for n in (1, 4))
    assert four == pytest.approx(one / 4, rel=0.2)


def test_a_large_data_set_is_sampled():
    order = StepOrder([9] * 100_000, 64, seed=0)
    steps = first_steps(order)
    assert len(steps) < order.steps_per_epoch / 4
    assert steps == [order.step_rows(i) for i in range(len(steps))]
    assert len(first_steps(StepOrder([9] * 10, 4, seed=0))) == 3
