"""Who is compared with whom, which episodes are chosen, and what a student keeps."""

from __future__ import annotations

import pytest
from report_runs import episode, evaluation_run, json_lines, teacher_and_student, training_run

from sad_components.report.episodes import MAX_PIECE, MAX_PIECES, side_by_side
from sad_components.report.load import load
from sad_components.report.pairs import across_runs, duels, retention, teacher_of

ONE = [episode("a", True, ["go"])]


def players(tmp_path, **parameters):
    policies = {name: (ONE, {"parameters": n} if n else {}) for name, n in parameters.items()}
    return load([evaluation_run(tmp_path / "run", policies)]).players


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"big": 9, "my_teacher": 3, "expert": None}, "my_teacher"),
        ({"small": 3, "big": 9, "expert": None}, "big"),
        ({"small": 3, "expert": None}, "expert"),
        ({"a": None, "b": None}, None),
        ({"a": 5, "b": 5}, None),
    ],
)
def test_the_teacher_is_named_or_the_largest_or_the_expert(tmp_path, parameters, expected):
    found = teacher_of(players(tmp_path, **parameters))
    assert (found.name if found else None) == expected


def test_a_wanted_teacher_wins_and_an_unknown_one_is_an_error(tmp_path):
    known = players(tmp_path, teacher=9, b=3)
    assert teacher_of(known, "b").name == "b"
    with pytest.raises(ValueError, match=r"teacher, b\); got 'c'"):
        teacher_of(known, "c")


def test_what_the_student_alone_lost_comes_first(tmp_path):
    material = load([teacher_and_student(tmp_path / "run")])
    (duel,) = duels(material.players, teacher_of(material.players))
    assert [(p.student.task, p.outcome, p.diverged) for p in duel.pairs] == [
        ("b", "only the teacher won", 2),
        ("d", "neither won", 1),
        ("a", "both won", None),
        ("c", "both won", None),
    ]


def test_side_by_side_cuts_and_marks_the_first_divergent_step(tmp_path):
    material = load([teacher_and_student(tmp_path / "run")])
    found = duels(material.players, teacher_of(material.players))
    shown = side_by_side(found, 2, [])
    assert [each.task for each in shown] == ["b", "d"]
    first = shown[0]
    assert [(row.step, row.diverges) for row in first.rows] == [(1, False), (2, True), (3, False)]
    kinds = [(piece.kind, piece.text) for piece in first.rows[1].student]
    assert kinds == [
        ("reason", "Thought: I will wander."),
        ("act", "Action: wander"),
        ("observation", "You see a cup."),
    ]
    assert first.rows[2].teacher == []
    assert [piece.kind for piece in first.opening] == ["context"]


def test_collections_are_compared_by_their_transcripts(tmp_path):
    """Their journals know no actions."""
    source = teacher_and_student(tmp_path / "run")
    for name in ("teacher", "student"):
        folder = tmp_path / name
        folder.mkdir()
        records = (source / name / "trajectories.jsonl").read_text()
        (folder / "out.jsonl").write_text(records)
        settings = {"environment": ["rooms", {}], "policy": {"name": name}}
        entry = {"id": "room-b", "task": "b", "seed": 0, "won": name == "teacher", "steps": 2}
        json_lines(folder / "out.jsonl.journal", [{"settings": settings}, entry])
    material = load([tmp_path / "teacher", tmp_path / "student"])
    found = duels(material.players, teacher_of(material.players))
    (shown,) = side_by_side(found, 5, [])
    assert shown.diverged == 2
    (test,) = across_runs(found, [])
    assert (test.a, test.b, test.run) == ("student", "teacher", "across runs")
    assert (test.figures["only_a"], test.figures["only_b"]) == (0, 1)
    assert test.figures["success_difference"]["mean"] == -1


def test_long_pieces_and_long_steps_are_cut_and_say_so(tmp_path):
    run = teacher_and_student(tmp_path / "run")
    long = "x" * (MAX_PIECE + 1234)
    turn = "\n".join(f"Thought: {n}\nObservation: {n}" for n in range(MAX_PIECES))
    messages = [
        {"role": "user", "content": long},
        {"role": "assistant", "content": f"{turn}\nThought: a\nAction: go"},
    ]
    record = {"id": "room-b", "format": "react", "messages": messages}
    json_lines(run / "teacher" / "trajectories.jsonl", [record])
    material = load([run])
    shown = side_by_side(duels(material.players, teacher_of(material.players)), 1, [])[0]
    assert shown.opening[0].text.endswith("… [1,234 more characters]")
    assert len(shown.rows[0].teacher) == MAX_PIECES + 1
    assert "not shown" in shown.rows[0].teacher[-1].text


def test_a_missing_or_broken_transcript_is_said(tmp_path):
    run = teacher_and_student(tmp_path / "run")
    (run / "teacher" / "trajectories.jsonl").unlink()
    broken = {"id": "room-b", "format": "no such", "messages": [{"role": "user", "content": "x"}]}
    json_lines(run / "student" / "trajectories.jsonl", [broken])
    material = load([run])
    shown = side_by_side(duels(material.players, teacher_of(material.players)), 1, [])[0]
    assert shown.teacher.problem == "no transcript of this episode was found"
    assert "cannot be cut" in shown.student.problem


def test_retention_by_success_and_by_action_match(tmp_path):
    material = load([teacher_and_student(tmp_path / "run"), training_run(tmp_path / "kd")])
    by_success, by_match = retention(
        material.players, teacher_of(material.players), material.training
    )
    assert by_success.measure == "success"
    assert by_success.compression == 4
    assert by_success.kept == pytest.approx((2 / 4) / (3 / 4))
    assert by_success.low < by_success.kept < by_success.high
    assert (by_match.measure, by_match.compression, by_match.kept) == ("action match", 4, 0.5)


def test_retention_falls_back_to_step_accuracy(tmp_path):
    lost = [episode("a", False, ["go"])]
    policies = {
        name: (lost, {"parameters": size, "heldout": {"step_accuracy": accuracy}})
        for name, size, accuracy in (("teacher", 8, 0.8), ("student", 2, 0.6))
    }
    known = load([evaluation_run(tmp_path / "run", policies)]).players
    (point,) = retention(known, teacher_of(known), [])
    assert (point.measure, point.kept) == ("step accuracy", pytest.approx(0.75))
