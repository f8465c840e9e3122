"""Chat rows under other names become OpenAI's shape; rows that are in it stay as they are."""

from __future__ import annotations

import pytest

from sad_components.formats._shapes import chat_row
from sad_components.formats.registry import Detector, get_format, segment, to_trajectory
from sad_components.spans import SpanKind
from sad_components.trajectory import TrajectoryError

CALL = {"name": "find", "arguments": '{"id": 7}'}
SHARED = [
    {"from": "system", "value": "rules"},
    {"from": "human", "value": "q"},
    {"from": "gpt", "value": "Thought: a\nAction: b"},
    {"from": "observation", "value": "Action: evil"},
    {"from": "gpt", "value": "Action: c"},
]


def cut(row):
    """Format, and per message: role, content, reasoning, names of calls, kinds of its spans."""
    trajectory = to_trajectory(row, Detector([row]).choose(row)[0])
    out = []
    for message, spans in zip(trajectory.messages, segment(trajectory), strict=True):
        calls = [c["function"]["name"] for c in message.tool_calls or []]
        kinds = [s.kind for s in spans]
        out.append((message.role, message.text, message.reasoning_content, calls, kinds))
    return trajectory, out


@pytest.mark.parametrize("key", ["conversations", "conversation", "messages"])
def test_sharegpt(key):
    trajectory, turns = cut({key: SHARED, "id": "x"})
    assert (trajectory.format, trajectory.id) == ("react", "x")
    assert [t[0] for t in turns] == ["system", "user", "assistant", "tool", "assistant"]
    assert turns[2][4] == [SpanKind.REASON, SpanKind.ACT]
    assert turns[3][4] == [SpanKind.OBSERVATION]


def test_sharegpt_function_calls():
    row = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "find", "arguments": {"id": 7}}'},
            {"from": "observation", "value": "found"},
            {"from": "function_call", "value": "not JSON"},
            {"from": "gpt", "value": "Done."},
        ]
    }
    trajectory, turns = cut(row)
    assert trajectory.messages[1].tool_calls[0]["function"] == CALL
    assert [t[3] for t in turns] == [[], ["find"], [], [], []]
    assert turns[3][:2] == ("assistant", "not JSON")


def test_the_older_function_call():
    turn = {"role": "assistant", "content": None, "function_call": CALL}
    row = {"messages": [turn, {"role": "function", "name": "find", "content": "found"}]}
    trajectory, turns = cut(row)
    assert trajectory.messages[0].tool_calls == [{"type": "function", "function": CALL}]
    assert turns[1][4] == [SpanKind.OBSERVATION]
    assert "function_call" not in trajectory.to_dict()["messages"][0]


def test_parts_that_think_call_and_answer():
    use = {"type": "tool_use", "id": "c1", "name": "find", "input": {"id": 7}}
    result = {"type": "tool_result", "tool_use_id": "c1"}
    row = {
        "messages": [
            {"role": "user", "content": "q"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "I look."},
                    use,
                ],
            },
            {
                "role": "user",
                "content": [
                    {**result, "content": [{"type": "text", "text": "found"}]},
                    {"type": "text", "text": "Go on."},
                ],
            },
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [{**result, "content": "again"}]},
        ]
    }
    trajectory, turns = cut(row)
    assert [t[:4] for t in turns] == [
        ("user", "q", None, []),
        ("assistant", "I look.", "hm", ["find"]),
        ("tool", "found", None, []),
        ("user", "Go on.", None, []),
        ("assistant", "", None, ["find"]),
        ("tool", "again", None, []),
    ]
    assert trajectory.messages[1].tool_calls[0] == {
        "id": "c1",
        "type": "function",
        "function": CALL,
    }
    assert [t[4] for t in turns[2:4]] == [[SpanKind.OBSERVATION], [SpanKind.OBSERVATION]]


def test_reasoning_beside_the_content():
    row = {"messages": [{"role": "assistant", "content": "Hi.", "reasoning": "Greet."}]}
    assert cut(row)[1] == [("assistant", "Hi.", "Greet.", [], [SpanKind.ACT])]
    row["messages"][0]["reasoning_content"] = None
    assert cut(row)[1] == [("assistant", "Hi.", "Greet.", [], [SpanKind.ACT])]


def test_a_function_call_that_is_none_stays_where_it_was():
    row = {"messages": [{"from": "gpt", "value": "Hi.", "function_call": "auto"}]}
    trajectory, turns = cut(row)
    assert turns == [("assistant", "Hi.", None, [], [SpanKind.ACT])]
    assert trajectory.messages[0].extra == {"function_call": "auto"}
    row["messages"][0] |= {"function_call": {"name": "f"}, "tool_calls": 5}
    with pytest.raises(TrajectoryError, match=r"tool_calls is a list of JSON objects; got 5"):
        cut(row)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": [{"type": "text"}]}],
        [{"type": "message", "role": "user", "content": "q"}, {"type": "reasoning"}],
        ["no object"],
        [],
        None,
    ],
)
def test_other_rows_stay_as_they_are(messages):
    row = {"messages": messages}
    assert chat_row(row) is row


def test_a_format_that_means_nothing_here_is_noted():
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Action: a"}]
    trajectory, _ = cut({"messages": turns, "format": "theirs"})
    assert trajectory.format == "react"
    assert "'theirs'" in trajectory.meta["notes"][0]


def test_a_record_of_flat_text_needs_its_format():
    turns = [{"role": "assistant", "content": "Action: a\n"}]
    with pytest.raises(TrajectoryError, match=r"'theirs', which is not registered.*known: .*react"):
        cut({"messages": turns, "format": "theirs", "meta": {"layout": "text"}})


def test_a_role_that_is_no_name_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="role"):
        to_trajectory({"messages": [{"role": [], "content": "a"}]}, get_format("react"))


def test_words_before_a_made_up_observation_are_no_observation():
    row = {"messages": [{"role": "assistant", "content": "It is done.\nObservation 1: ok"}]}
    (spans,) = segment(to_trajectory(row, get_format("react")))
    assert [s.kind.label for s in spans] == ["act", "context"]
