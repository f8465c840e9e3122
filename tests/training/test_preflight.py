"""What a run says at its start: memory, time, templates, coverage; right, and never fatal."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from loading import load_module
from omegaconf import OmegaConf

from sad_components.data import StepOrder
from sad_components.data.shipped import resolve_folder
from sad_components.models import from_scratch, save_student
from sad_components.training import epoch_time, memory, preflight
from sad_components.training.memory import available_bytes, first_steps
from sad_components.training.preflight import coverage_warnings

TINY = Path(__file__).parents[2] / "configs" / "tiny" / "structured_kd.yaml"
CONFIG = OmegaConf.to_container(OmegaConf.load(TINY).student.config)


def reads_weights(**config):
    """A builder that the meta device stops: it wants to know what is in its weights."""
    model = from_scratch(config)
    if float(next(model.parameters()).detach().sum()) == 0:
        raise AssertionError("random weights do not add up to 0")
    return model


def at_setup(capsys, *overrides: str) -> str:
    """What the tiny config's run prints before its first step."""
    few = ("dataset.limit=4", "heldout.limit=2", "metric_logger=null", *overrides)
    cfg = OmegaConf.load(TINY)
    given = OmegaConf.from_dotlist(list(few))
    if "student" in given:  # another builder takes other arguments
        cfg.student = given.student
    cfg = OmegaConf.merge(cfg, given)
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
    monkeypatch.setattr(memory, "base_bytes", lambda device: 7_000_000_000)
    printed = at_setup(capsys)
    assert "memory: about 7.1 GB estimated, 32.0 GB available" in printed
    assert "will probably not fit" not in printed


def test_a_run_says_how_long_an_epoch_takes_at_least(capsys, monkeypatch):
    monkeypatch.setattr(epoch_time, "product_rate", lambda dtype, device: 1e9)
    printed = at_setup(capsys, "batch_size=2")
    tokens = int(re.search(r"4 of \d+ rows, ([\d,]+) tokens", printed)[1].replace(",", ""))
    found = re.search(
        r"time: at least (\d+) s an epoch \(2 steps, (\S+) FLOPs at 1 GFLOP/s", printed
    )
    # 6 times the student's and 2 times the teacher's weights a token, heads on a part of them
    most = tokens * (6 * 107_000 + 2 * 181_000)
    assert 0.5 * most < float(found[2]) < most
    assert int(found[1]) == round(float(found[2]) / 1e9)


def test_processes_share_an_epoch(monkeypatch):
    monkeypatch.setattr(epoch_time, "product_rate", lambda dtype, device: 1e9)
    student = from_scratch(CONFIG)
    alone, four = (
        epoch_time.epoch_time(student, None, 1000, 0.5, torch.device("cpu"), n) for n in (1, 4)
    )
    assert four.flops == alone.flops
    assert four.seconds == alone.seconds / 4
    assert "on each of 4 processes" in four.describe(steps=1)


def test_models_of_another_template_are_named(capsys, tmp_path):
    shutil.copytree(resolve_folder("shipped:household/tokenizer"), tmp_path / "model")
    settings = tmp_path / "model" / "tokenizer_config.json"
    named = {**json.loads(settings.read_text()), "chat_template": "{{ messages }}"}
    settings.write_text(json.dumps(named))
    save_student(from_scratch(CONFIG), tmp_path / "model", tmp_path / "model")
    student = "student={_component_: sad_components.models.from_pretrained, path: model}"
    assert "has another chat template" not in at_setup(capsys, student)  # plain style
    printed = at_setup(capsys, student, "transform.style=chat", "output_dir=chat")
    assert "warning: model has another chat template: its model sees turns as" in printed


def test_data_that_teach_little_are_warned_of():
    assert coverage_warnings(0.02, 25, 100) == []
    few, cut = coverage_warnings(0.019, 26, 100)
    assert few.startswith("only 1.9% of the tokens are supervised")
    assert cut.startswith("26 of 100 rows are cut: raise transform.max_seq_len")


def test_cut_rows_are_warned_of_at_the_start(capsys):
    assert "4 of 4 rows are cut" in at_setup(capsys, "transform.max_seq_len=400")


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
