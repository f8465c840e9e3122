from __future__ import annotations

import errno
import json

import pytest
import torch

from sad_components.training.config import ConfigError
from sad_components.training.run_folder import RunFolder


def save(folder: RunFolder, step: int, text: str = "weights") -> None:
    def write_weights(path):
        (path / "model").write_text(text)

    folder.checkpoints.save(step, {"step": step, "tensor": torch.ones(2)}, write_weights)


def test_newest_checkpoints_stay_and_load(tmp_path):
    folder = RunFolder(tmp_path / "run", keep=2)
    for step in (1, 2, 10):
        save(folder, step, f"after {step}")
    assert [p.name for p in folder.checkpoints.all()] == ["step_00000002", "step_00000010"]
    newest, state = folder.checkpoints.load()
    assert (newest / "model").read_text() == "after 10"
    assert state["step"] == 10


def test_other_run_is_refused_unless_resuming(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.log({"step": 1})
    with pytest.raises(ConfigError, match=r"holds another run \(metrics.jsonl\)"):
        RunFolder(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"needs a checkpoint .*resume: auto"):
        RunFolder(tmp_path / "run", resume=True)
    save(folder, 1)
    RunFolder(tmp_path / "run", resume=True)


def test_resume_auto_begins_goes_on_and_begins_again_where_no_checkpoint_was_made(tmp_path):
    folder = RunFolder(tmp_path / "run", resume="auto")
    folder.log({"step": 1})
    folder = RunFolder(tmp_path / "run", resume="auto")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    folder.log({"step": 1})
    save(folder, 1)
    RunFolder(tmp_path / "run", resume="auto")
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_resume_auto_does_not_begin_in_the_folder_of_a_finished_run(tmp_path):
    folder = RunFolder(tmp_path / "run", resume="auto")
    folder.write_summary({"steps": 3})
    with pytest.raises(ConfigError, match=r"holds another run \(summary.json\)"):
        RunFolder(tmp_path / "run", resume="auto")


def test_unknown_resume_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="true, false or auto; got 'yes'"):
        RunFolder(tmp_path / "run", resume="yes")


def test_leftovers_of_a_killed_save_are_cleared_away_by_the_next_start_only(tmp_path):
    save(RunFolder(tmp_path / "run"), 1)
    left = tmp_path / "run" / "checkpoints" / ".step_00000002"
    left.mkdir()
    with pytest.raises(ConfigError):
        RunFolder(tmp_path / "run")
    assert left.exists()  # another process may be writing it
    RunFolder(tmp_path / "run", resume=True)
    assert not left.exists()


def test_metrics_are_json_whatever_the_figures(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.log({"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "lr": 0.5})
    line = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {
        **{"step": 1, "loss": None, "grad_norm": None, "lr": 0.5}
    }


def test_metrics_behind_the_checkpoint_are_dropped(tmp_path):
    folder = RunFolder(tmp_path / "run")
    for step in (1, 2, 3):
        folder.log({"step": step})
    folder.forget_after(2)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert lines == ['{"step": 1}', '{"step": 2}']


def test_metrics_line_cut_short_is_dropped(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.log({"step": 1})
    with open(tmp_path / "run" / "metrics.jsonl", "a") as handle:
        handle.write('{"step": 2, "lo')
    folder.forget_after(2)
    folder.log({"step": 2})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert lines == ['{"step": 1}', '{"step": 2}']


def test_state_is_read_without_pickle(tmp_path):
    folder = RunFolder(tmp_path / "run")
    save(folder, 1)
    (folder.checkpoints.all()[-1] / "state.pt").write_bytes(b"\x80\x04c__builtin__\nprint\n.")
    with pytest.raises(Exception, match=r"(?i)weights_only|pickle|invalid"):
        folder.checkpoints.load(verify=False)


def test_first_checkpoint_that_fails_does_not_send_to_resume(tmp_path):
    def fail(path):
        raise OSError(errno.ENOSPC, "No space left")

    with pytest.raises(OSError, match="there is no earlier one") as caught:
        RunFolder(tmp_path / "run").checkpoints.save(2, {}, fail)
    assert "resume" not in str(caught.value)
