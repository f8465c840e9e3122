"""What `sad report` reads of finished, unfinished, old and broken runs."""

from __future__ import annotations

import json
import math

import pytest
from report_runs import episode, evaluation_run, json_lines, teacher_and_student, training_run

from sad_components.report import reading
from sad_components.report.load import load


def test_a_training_run(tmp_path):
    material = load([training_run(tmp_path / "kd")])
    (run,) = material.training
    assert run.label == "kd"
    assert run.curves["loss"].steps == [1, 2, 3]
    assert run.curves["loss"].values == [5.0, 2.5, pytest.approx(5 / 3)]
    assert run.heldout["kl_reason"].values == [9.0, 1.5]
    assert (run.parameters("student"), run.parameters("teacher")) == (1000, 4000)
    assert material.notes == []


def test_an_evaluation(tmp_path):
    material = load([teacher_and_student(tmp_path / "eval")])
    assert [p.label for p in material.players] == ["teacher", "student"]
    student = material.players[1]
    assert student.won_of() == (2, 4)
    assert student.won_of("heat") == (1, 2)
    assert student.task_types() == {"pick", "heat"}
    assert student.episodes[1].actions == ["go", "wander", "wander"]
    assert student.parameters == 1000


def test_a_collection_counts_what_was_played_not_what_was_kept(tmp_path):
    settings = {"environment": ["rooms", {}], "policy": {"_component_": "a.b.ExpertPolicy"}}
    played = [
        {"id": "1", "task": "a", "seed": 0, "kept": True, "won": True, "steps": 4, "tokens": 9},
        {"id": "2", "task": "b", "seed": 0, "kept": False, "won": False, "steps": 8, "tokens": 9},
    ]
    json_lines(tmp_path / "out.jsonl.journal", [{"settings": settings}, *played])
    json_lines(tmp_path / "out.jsonl", [])
    for place in (tmp_path, tmp_path / "out.jsonl"):
        (player,) = load([place]).players
        assert (player.name, player.environment) == ("ExpertPolicy", "rooms")
        assert player.won_of() == (1, 2)
        assert player.mean_steps() == 6


def test_a_line_that_a_kill_cut_short_is_skipped_and_counted(tmp_path):
    folder = training_run(tmp_path / "kd")
    with open(folder / "metrics.jsonl", "a") as handle:
        handle.write('{"step": 4, "loss": 0.')
    material = load([folder])
    assert material.training[0].curves["loss"].steps == [1, 2, 3]
    assert material.notes == ["kd: metrics.jsonl: 1 line skipped (not JSON, or cut short)"]


def test_an_unfinished_run_is_shown_without_its_summary(tmp_path):
    folder = training_run(tmp_path / "kd")
    (folder / "summary.json").unlink()
    material = load([folder])
    assert material.training[0].summary == {}
    assert "not finished" in material.notes[0]


def test_numbers_that_are_none_are_gaps(tmp_path):
    folder = tmp_path / "kd"
    folder.mkdir()
    rows = ['{"step": 1, "loss": NaN}', '{"step": 2, "loss": 1.0}', '{"step": 3, "loss": Infinity}']
    rows += ['{"step": 4, "loss": null}', '{"step": 5, "loss": 1e300}', '{"loss": 3}']
    (folder / "metrics.jsonl").write_text("\n".join(rows))
    material = load([folder])
    values = material.training[0].curves["loss"].values
    assert [math.isnan(v) for v in values] == [True, False, True, True, True]
    assert any("4 values are no finite numbers" in note for note in material.notes)
    assert any("1 line skipped (without a step)" in note for note in material.notes)


def test_results_of_an_older_version_lack_figures(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"policies": {"p": {}}}))
    (player,) = load([tmp_path]).players
    assert player.parameters is None
    assert player.won_of() is None
    assert player.figure("heldout", "step_accuracy") is None


def test_runs_of_one_name_stay_apart(tmp_path):
    runs = [training_run(tmp_path / name / "kd") for name in ("a", "b")]
    assert [run.label for run in load([*runs, runs[0]]).training] == ["a/kd", "b/kd", "a/kd (2)"]


def test_policies_of_one_name_stay_apart(tmp_path):
    runs = [
        evaluation_run(tmp_path / name, {"p": ([episode("a", True, ["go"])], {})}) for name in "xy"
    ]
    assert [player.label for player in load(runs).players] == ["x / p", "y / p"]


def test_a_folder_without_a_run_is_skipped_beside_others_and_an_error_alone(tmp_path):
    (tmp_path / "empty").mkdir()
    run = training_run(tmp_path / "kd")
    assert any("empty: skipped" in note for note in load([run, tmp_path / "empty"]).notes)
    with pytest.raises(ValueError, match=r"nothing to report: empty: skipped, no run"):
        load([tmp_path / "empty"])
    with pytest.raises(ValueError, match=r"kd is one, though"):
        load([tmp_path])


def test_a_path_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load([training_run(tmp_path / "kd"), tmp_path / "kdd"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is no JSON"),
        ("[1]", "holds a list"),
        ("[" * 200_000, "is no readable JSON"),
        ('{"a": ' + "9" * 5000 + "}", "is no readable JSON"),
        ('{"policies": {}}', "names no policies"),
    ],
)
def test_broken_results_are_named(tmp_path, text, problem):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=problem):
        load([tmp_path])


def test_files_and_lines_that_are_too_big_are_not_read(tmp_path, monkeypatch):
    folder = training_run(tmp_path / "kd")
    monkeypatch.setattr(reading, "MAX_FILE", 100)
    monkeypatch.setattr(reading, "MAX_LINE", 90)
    notes = load([folder]).notes
    assert any("summary.json has" in note and "at most 100" in note for note in notes)
    assert any("3 lines skipped (longer than 90 bytes)" in note for note in notes)


@pytest.mark.parametrize("name", ["../outside", "..", "", "a/b", "x\0y"])
def test_a_policy_name_does_not_lead_out_of_the_folder(tmp_path, name):
    run = tmp_path / "run"
    run.mkdir()
    for folder in (tmp_path / "outside", tmp_path, run, run / "a" / "b"):
        json_lines(folder / "episodes.jsonl", [episode("secret", True, ["go"])])
    (run / "results.json").write_text(json.dumps({"policies": {name: {}}}))
    material = load([run])
    assert material.players[0].episodes == []
    assert "no folder name" in material.notes[0]
