"""Runs that are stopped, and go on: signals, full disks, non-finite steps, processes that die."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from recipe_runs import run_recipe
from safetensors.torch import load_file

SUPPORT = Path(__file__).parents[1] / "support"
TINY = Path(__file__).parents[2] / "configs" / "tiny" / "structured_kd.yaml"
#: 8 steps without scores.
EIGHT = ("dataset.limit=16", "heldout=null", "batch_size=2", "metric_logger=null")
#: Scores after every second of 8 steps.
SCORED = (*EIGHT[:1], "heldout.limit=2", *EIGHT[2:], "eval_every_n_steps=2")


def configured(*overrides: str):
    return OmegaConf.merge(OmegaConf.load(TINY), OmegaConf.from_dotlist(list(overrides)))


def run(*overrides: str):
    """The recipe in this process, in the current folder; the recipe object afterwards."""
    return run_recipe(configured(*overrides))


def failing(what: str, *calls: int, rank: int = 0) -> tuple[str, ...]:
    """Overrides by which the loss fails at some of its calls (one a step, per process)."""
    where = (f"loss.calls=[{','.join(map(str, calls))}]", f"loss.rank={rank}")
    return ("loss._component_=failing_loss.FailingLoss", f"loss.what={what}", *where)


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "student" / "model.safetensors")


def assert_equal(one: str, other: str) -> None:
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def lines(folder: str) -> list[dict]:
    text = (Path(folder) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def checkpoints(folder: str) -> list[int]:
    return sorted(int(p.name[5:]) for p in (Path(folder) / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run of eight steps."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("whole")
    os.chdir(folder)
    try:
        run(*EIGHT, "output_dir=whole")
    finally:
        os.chdir(before)
    return str(folder / "whole")


# -- signals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("background", ["false", "true"])
def test_sigterm_leaves_a_checkpoint_after_the_step_and_the_run_goes_on(whole, capsys, background):
    options = (*EIGHT, "output_dir=parts", f"async_save={background}")
    with pytest.raises(SystemExit) as ended:
        run(*options, *failing("term", 3))
    assert ended.value.code == 143
    assert "SIGTERM: stopped after step 3 of 8" in capsys.readouterr().out
    assert checkpoints("parts") == [3]
    run(*options, "resume=true")
    assert_equal("parts", whole)
    assert [line["step"] for line in lines("parts")] == list(range(1, 9))


def test_scores_that_a_signal_left_out_are_made_up_for():
    with pytest.raises(SystemExit):
        run(*SCORED, "output_dir=parts", *failing("term", 4))
    assert [x["step"] for x in lines("parts") if "heldout_ce" in x] == [0, 2]
    run(*SCORED, "output_dir=parts", "resume=true")
    assert [x["step"] for x in lines("parts") if "heldout_ce" in x] == [0, 2, 4, 6, 8, 8]


def test_loggers_of_a_resumed_run_get_the_steps_that_follow(tmp_path, monkeypatch):
    (tmp_path / "noted.py").write_text(
        "STEPS = []\n"
        "class Noted:\n"
        "    def __init__(self, log_dir):\n        pass\n"
        "    def log_dict(self, payload, step):\n        STEPS.append(step)\n"
        "    def close(self):\n        STEPS.append('closed')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = (*EIGHT[:-1], "metric_logger={_component_: noted.Noted}")
    with pytest.raises(SystemExit):
        run(*options, *failing("term", 3))
    run(*options, "resume=auto")
    import noted

    assert noted.STEPS == [1, 2, 3, "closed", 4, 5, 6, 7, 8, "closed"]


# -- checkpoints ------------------------------------------------------------------------------


def test_checkpoints_written_beside_the_training_are_the_same():
    for name, background in (("here", "false"), ("beside", "true")):
        options = (f"output_dir={name}", f"async_save={background}")
        run(*EIGHT, "max_steps=4", "save_every_n_steps=1", "keep_checkpoints=9", *options)
    assert checkpoints("beside") == [1, 2, 3, 4]
    for step in checkpoints("beside"):
        one, other = (Path(name) / f"checkpoints/step_{step:08d}" for name in ("here", "beside"))
        assert_equal(str(one), str(other))
        states = [
            torch.load(path / "state.pt", weights_only=True)["optimizer"]["state"]
            for path in (one, other)
        ]
        for index, moments in states[0].items():
            for name, value in moments.items():
                assert torch.equal(value, states[1][index][name]), (step, index, name)


def test_best_checkpoint_stays_also_after_resuming():
    """The first score's KL is the largest: with ``max``, an old checkpoint is the best."""
    options = (*SCORED, "keep_checkpoints=1", "save_every_n_steps=3", "output_dir=parts")
    options = (*options, "keep_best={metric: kl_act, mode: max}")
    with pytest.raises(SystemExit):
        run(*options, *failing("term", 5))
    assert checkpoints("parts") == [2, 5]
    run(*options, "resume=true")
    assert checkpoints("parts") == [2, 6]
    best = json.loads(Path("parts/summary.json").read_text())["best"]
    first = next(x for x in lines("parts") if x["step"] == 2 and "heldout_kl_act" in x)
    assert best == {"metric": "kl_act", "mode": "max", "step": 2, "value": first["heldout_kl_act"]}


def test_the_best_one_is_saved_though_no_step_is_due():
    run(*SCORED, "keep_best={metric: kl_act, mode: min}", "keep_checkpoints=1")
    assert checkpoints("runs/tiny") == [8]


@pytest.fixture
def no_file_limit():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_while_saving_keeps_the_last_checkpoint(whole, no_file_limit):
    """Files cannot grow any more from step 5 on: what is written at step 6 fails half way."""
    options = (*EIGHT, "save_every_n_steps=3", "log_every_n_steps=99", "output_dir=parts")
    with pytest.raises(OSError, match=r"checkpoint of step 6 was not saved .*step_00000003"):
        run(*options, *failing("full", 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert checkpoints("parts") == [3]
    run(*options, "resume=true")
    assert_equal("parts", whole)


# -- non-finite steps -------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["nan", "gradient"])
@pytest.mark.parametrize("clip", ["1.0", "null"])
def test_nonfinite_step_stops_the_run_and_names_its_rows(what, clip):
    with pytest.raises(ValueError, match=r"step 3 has loss .*grad_norm .*nonfinite_step_3.json"):
        run(*EIGHT, *failing(what, 3), f"clip_grad_norm={clip}", "output_dir=out")
    assert [line["step"] for line in lines("out")] == [1, 2]
    written = json.loads(Path("out/nonfinite_step_3.json").read_text())
    (rank,) = written["ranks"]
    rows = [row for batch in rank["micro_batches"] for row in batch]
    recipe = run(*EIGHT, "max_steps=3", "output_dir=same")
    assert [row["row"] for row in rows] == recipe.order.step_rows(2)
    assert [row["id"] for row in rows] == [recipe.data[row["row"]].id for row in rows]
    if what == "gradient":
        assert written["metrics"]["loss"] == pytest.approx(lines("same")[2]["loss"])


def test_skipped_step_changes_nothing_and_is_counted():
    constant = (*EIGHT, "lr_scheduler=null")
    run(*constant, "max_steps=2", "output_dir=two")
    run(*constant, *failing("nan", 3), "nonfinite=skip", "max_steps=3", "output_dir=skipped")
    assert_equal("skipped", "two")
    assert [line["skipped_steps"] for line in lines("skipped")] == [0, 0, 1]
    assert lines("skipped")[2]["loss"] is None
    assert json.loads(Path("skipped/summary.json").read_text())["skipped_steps"] == 1


def test_too_many_skipped_in_a_row_stop_the_run():
    steps = range(2, 14)
    with pytest.raises(ValueError, match=r"at most 10 steps in a row .* step 12"):
        run(*EIGHT, *failing("nan", *steps), "nonfinite=skip", "epochs=2", "output_dir=out")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nonfinite=warn", "nonfinite is one of stop, skip"),
        ("async_save=maybe", "async_save must be true or false; got 'maybe'"),
        ("keep_best={metric: kl, mode: min}", "keep_best compares scores on held-out"),
        ("resume=maybe", "resume is true, false or auto"),
    ],
)
def test_bad_settings_are_explained(override, message):
    with pytest.raises(ValueError, match=message):
        run(*EIGHT, override)


# -- several processes ------------------------------------------------------------------------


def launch(*overrides: str) -> subprocess.CompletedProcess:
    """The tiny config on two processes, as users start it; ended after five minutes."""
    OmegaConf.save(configured(*overrides), "two.yaml")
    command = [sys.executable, "-m", "torchtune._cli.tune", "run", "--nproc_per_node", "2"]
    command += ["recipes/structured_kd.py", "--config", "two.yaml"]
    paths = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)


def seconds_since_last_step(folder: str) -> float:
    return time.time() - (Path(folder) / "metrics.jsonl").stat().st_mtime


TWO = (*EIGHT[:2], "batch_size=1", "metric_logger=null", "output_dir=two")


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("kill", "Signal 9 (SIGKILL) received"),
        pytest.param("raise", "ValueError: this row cannot be learnt from", marks=pytest.mark.slow),
    ],
)
def test_process_that_dies_ends_the_others_with_its_reason(what, reason):
    done = launch(*TWO, *failing(what, 3, rank=1))
    assert seconds_since_last_step("two") < 60
    assert done.returncode != 0
    assert "(process 0): error: another process of this run ended" in done.stderr
    root_cause = done.stderr.partition("Root Cause")[2]
    assert "rank      : 1" in root_cause
    assert reason in root_cause


@pytest.mark.slow
def test_signal_to_one_process_stops_all_with_a_checkpoint():
    done = launch(*TWO, *failing("term", 3, rank=1))
    assert done.returncode != 0
    assert "SIGTERM: stopped after step 3 of 8" in done.stdout
    assert checkpoints("two") == [3]
    shutil.copytree("two", "one")
    resumed = launch(*TWO, "resume=true")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    whole = launch(*TWO, "output_dir=whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert_equal("two", "whole")
    run(*TWO, "output_dir=one", "batch_size=2", "resume=true")  # as many rows a step
    for name, value in weights("one").items():
        torch.testing.assert_close(value, weights("whole")[name], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_nonfinite_loss_of_one_process_is_skipped_by_all():
    options = (*TWO, "nonfinite=skip", "lr_scheduler=null")
    done = launch(*options, *failing("nan", 2, rank=1), "max_steps=2")
    assert done.returncode == 0, done.stderr[-3000:]
    written = json.loads(Path("two/nonfinite_step_2.json").read_text())
    rows = [[r["row"] for b in rank["micro_batches"] for r in b] for rank in written["ranks"]]
    assert [len(of_rank) for of_rank in rows] == [1, 1]
    assert launch(*options, "max_steps=1", "output_dir=one").returncode == 0
    for name, value in weights("one").items():
        assert torch.equal(value, weights("two")[name])
