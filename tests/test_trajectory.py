"""The canonical record: round trips and errors that say where."""

from __future__ import annotations

import json

import pytest

from sad_components.trajectory import (
    Message,
    Trajectory,
    TrajectoryError,
    iter_json_lines,
    read_jsonl,
    write_jsonl,
)

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}
FULL = Trajectory(
    id="t1",
    env="household",
    task="put a cup on the table",
    success=True,
    score=0.5,
    teacher="expert",
    format="react",
    meta={"seed": 3, "engine": {"name": "textworld"}},
    messages=[
        Message("system", "Be brief."),
        Message("user", [{"type": "text", "text": "Go"}, {"type": "text", "text": " on."}]),
        Message(
            "assistant",
            "Thought: é\nAction: go",
            weight=0.0,
            acceptable=["go", "walk"],
            token_ids=[1, 2],
            logprobs=[-0.5, -1.0],
            tokenizer_hash="abc",
            reasoning_content="hm",
            extra={"is_demo": True},
        ),
        Message("assistant", None, tool_calls=[CALL], name="agent"),
        Message("tool", "done", tool_call_id="c1"),
    ],
)
PLAIN = Trajectory(id="t2", messages=[Message("user", "hi"), Message("assistant", "Action: wait")])


def test_round_trip_through_a_dict():
    assert Trajectory.from_dict(FULL.to_dict()) == FULL
    assert Trajectory.from_dict(json.loads(json.dumps(FULL.to_dict()))) == FULL


def test_round_trip_through_jsonl(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    assert write_jsonl(path, [FULL, PLAIN]) == 2
    assert list(read_jsonl(path)) == [FULL, PLAIN]
    assert "é" in path.read_text(encoding="utf-8")
    assert not list(path.parent.glob("*.part"))


def test_round_trip_through_datasets_which_fills_missing_keys_with_none():
    import datasets

    full = Trajectory.from_dict(FULL.to_dict())
    full.messages[1].content = "Go on."  # one column has one type
    columns = datasets.Dataset.from_list([full.to_dict(), PLAIN.to_dict()])
    assert columns[1]["messages"][0]["tool_calls"] is None  # what is undone
    assert [Trajectory.from_dict(row) for row in columns] == [full, PLAIN]


def test_datasets_nulls_inside_structs_vanish():
    import datasets

    one = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}
    two = {"messages": [{"role": "user", "content": [{"type": "image", "url": "u"}]}]}
    one["meta"], two["meta"] = {"a": {"b": 1}}, {"a": {"c": 2}}
    rows = [Trajectory.from_dict(r).to_dict() for r in datasets.Dataset.from_list([one, two])]
    assert rows == [one, two]


def test_a_null_argument_of_a_tool_call_stays():
    call = {"function": {"name": "f", "arguments": {"unit": None, "n": 1}}, "index": None}
    message = Message.from_dict({"role": "assistant", "content": None, "tool_calls": [call]})
    assert message.tool_calls == [{"function": call["function"]}]


def test_unknown_keys_are_kept_where_they_were():
    record = {"messages": [{"role": "user", "content": "x", "mood": "good"}], "reward_type": "r"}
    trajectory = Trajectory.from_dict(record)
    assert trajectory.messages[0].extra == {"mood": "good"}
    assert trajectory.meta == {"reward_type": "r"}
    assert trajectory.to_dict()["messages"] == record["messages"]


def test_text_joins_text_parts_and_leaves_out_the_others():
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "url": "x"}, {"text": "b"}]
    assert Message("user", parts).text == "ab"
    assert Message("assistant", None).text == ""


@pytest.mark.parametrize(("weight", "learnt"), [(None, True), (1, True), (0, False), (0.0, False)])
def test_weight_zero_is_not_learnt(weight, learnt):
    assert Message("assistant", "x", weight=weight).is_learnt is learnt
    assert not Message("assistant", "x", weight=weight, extra={"is_demo": True}).is_learnt


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "a trajectory is a JSON object; got list"),
        ({"text": 1, "id": "x"}, r"got keys \['id', 'text'\]"),
        ({"messages": []}, r"non-empty list under 'messages'; got \[\]"),
        ({"messages": ["x"]}, "message 0: a message is a JSON object; got str"),
        ({"messages": [{"role": "robot"}]}, "message 0: .*system, .*got 'robot'"),
        ({"messages": [{"role": "user", "content": 3}]}, "content is a string.*got int"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "parts are JSON objects; got 'x'"),
        ({"messages": [{"role": "user", "weight": True}]}, "weight is a number.*got True"),
        ({"messages": [{"role": "user", "tool_calls": "x"}]}, "tool_calls is a list"),
        ({"messages": [{"role": "user", "content": [{"text": 5}]}]}, "part's text is a string"),
        ({"messages": [{"role": "user", "reasoning_content": ["x"]}]}, "reasoning_content is a st"),
        ({"messages": [{"role": "user", "tool_calls": [{"function": "f"}]}]}, "function is a JSON"),
        (
            {"messages": [{"role": "assistant", "token_ids": [1], "logprobs": []}]},
            "equally long; got 1 and 0",
        ),
        ({"messages": [{"role": "assistant", "token_ids": 5, "logprobs": [0.1]}]}, "is a list"),
    ],
)
def test_bad_records_say_what_is_wrong(record, message):
    with pytest.raises(TrajectoryError, match=message):
        Trajectory.from_dict(record)


def test_a_number_as_id_becomes_text():
    record = {"messages": [{"role": "user", "content": "x"}]}
    assert [Trajectory.from_dict({"id": i, **record}).id for i in (7, 0)] == ["7", "0"]


def test_malformed_json_names_file_line_and_column(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(TrajectoryError, match=r"rows.jsonl:3: .*not JSON: .* at column \d+"):
        list(iter_json_lines(path))


def test_a_line_that_is_no_trajectory_names_file_and_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(PLAIN.to_dict()) + '\n{"messages": []}\n')
    with pytest.raises(TrajectoryError, match=r"rows.jsonl:2: a trajectory has a non-empty list"):
        list(read_jsonl(path))


def test_bytes_that_are_not_utf8_name_file_and_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(PLAIN.to_dict()).encode() + b'\n{"messages": "\xff"}\n')
    with pytest.raises(TrajectoryError, match=r"rows.jsonl:2: .*UTF-8"):
        list(read_jsonl(path))


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(PLAIN.to_dict()) + "\n", encoding="utf-8-sig")
    assert list(read_jsonl(path)) == [PLAIN]


def test_half_a_character_survives_a_round_trip(tmp_path):
    cut = Trajectory([Message("user", "caf\u00e9 \ud83d")])
    write_jsonl(tmp_path / "rows.jsonl", [cut, PLAIN])
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == [cut, PLAIN]


def test_an_empty_file_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n")
    with pytest.raises(TrajectoryError, match="holds no trajectory: the file is empty"):
        list(read_jsonl(path))
    with pytest.raises(FileNotFoundError):
        list(read_jsonl(tmp_path / "none.jsonl"))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [PLAIN])

    def broken():
        yield FULL
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_jsonl(path, broken())
    assert list(read_jsonl(path)) == [PLAIN]
