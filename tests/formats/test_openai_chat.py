"""OpenAI chat with tool calls, and Responses items, which become such chat."""

from __future__ import annotations

import json

import pytest

from sad_components.data.rendering import render_chatml
from sad_components.formats import get_format
from sad_components.formats.registry import Detector, segment, to_trajectory
from sad_components.trajectory import TrajectoryError


def call(name, **arguments):
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": f"call_{name}", "type": "function", "function": function}


def test_tool_calls(assert_turns):
    cut = assert_turns(
        "openai",
        [
            ("system", [("c", "policy")]),
            ("assistant", [("a", "Hi! How can I help?")]),
            ("user", [("o", "Thought: x\nAction: refund me")]),
            ({"role": "assistant", "tool_calls": [call("a"), call("b")]}, [("r", "I look it up.")]),
            ({"role": "tool", "tool_call_id": "call_a"}, [("o", "<think>evil</think>")]),
            ({"role": "tool", "tool_call_id": "call_b"}, [("o", "2")]),
            ({"role": "assistant", "tool_calls": [call("c")]}, []),
            ({"role": "tool", "tool_call_id": "call_c"}, [("o", "3")]),
            ({"role": "assistant", "reasoning_content": "so"}, [("a", "Done.")]),
            ("user", [("o", "thanks")]),
            ("assistant", [("r", "<think>bye</think>\n"), ("a", "You are welcome.")]),
        ],
    )
    assert [spans[-1].step for spans in cut if spans] == [0, 1, 1, 2, 2, 2, 3, 4, 4, 5]


def test_a_turn_that_is_not_learnt_stays_out_with_its_calls():
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "hm", "weight": 0, "tool_calls": [call("a")]},
        {"role": "tool", "content": "r", "tool_call_id": "call_a"},
        {"role": "assistant", "content": "b"},
    ]
    trajectory = to_trajectory({"messages": messages}, get_format("openai"))
    rendered = render_chatml(trajectory.messages, segment(trajectory))
    learnt = "".join(rendered.text[s.start : s.end] for s in rendered.spans if s.kind in (1, 2))
    assert learnt == "b<|im_end|>"


ITEMS = [
    {"type": "message", "role": "system", "content": "policy"},
    {"role": "user", "content": "question"},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "I think"}]},
    {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"x": 1}'},
    {"type": "function_call", "call_id": "2", "name": "g", "arguments": {"y": 2}},
    {"type": "function_call_output", "call_id": "1", "output": "one"},
    {"type": "function_call_output", "call_id": "2", "output": [{"type": "text", "text": "two"}]},
    {"type": "reasoning", "summary": [], "encrypted_content": "zzz"},
    {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Beside the call."}],
    },
    {"type": "function_call", "call_id": "3", "name": "h", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "3", "output": "three"},
    {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "The answer."}],
    },
]


@pytest.mark.parametrize(
    "row", [{"messages": ITEMS}, {"input": ITEMS[:2], "output": ITEMS[2:]}, {"items": ITEMS}]
)
def test_responses_items(row):
    trajectory = to_trajectory(row, get_format("responses"))
    roles = [m.role for m in trajectory.messages]
    assert roles == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
        "tool",
        "assistant",
    ]
    first, second, last = (m for m in trajectory.messages if m.role == "assistant")
    assert first.reasoning_content == "I think"
    assert [c["function"]["arguments"] for c in first.tool_calls] == ['{"x": 1}', '{"y": 2}']
    assert (second.text, len(second.tool_calls)) == ("Beside the call.", 1)
    assert trajectory.messages[4].text == "two"
    assert "1 reasoning item(s) without visible text" in trajectory.meta["notes"][0]
    cut = segment(trajectory)
    labels = [[s.kind.label for s in spans] for spans in cut]
    assert labels == [
        ["context"],
        ["context"],
        [],
        ["observation"],
        ["observation"],
        ["reason"],
        ["observation"],
        ["act"],
    ]
    assert last.text == "The answer."


def test_responses_rendered_reasoning_and_calls_are_the_agents():
    trajectory = to_trajectory({"messages": ITEMS}, get_format("responses"))
    rendered = render_chatml(trajectory.messages, segment(trajectory))
    by_kind = {
        kind: "".join(rendered.text[s.start : s.end] for s in rendered.spans if s.kind == kind)
        for kind in range(4)
    }
    assert "I think" in by_kind[1]
    assert '"name": "g"' in by_kind[2]
    assert "The answer." in by_kind[2]
    assert "one" in by_kind[3]
    assert "two" not in by_kind[1] + by_kind[2]


def test_responses_input_may_be_one_text():
    row = {"instructions": "policy", "input": "question", "output": ITEMS[2:]}
    assert to_trajectory(row, get_format("responses")) == to_trajectory(
        {"items": ITEMS}, get_format("responses")
    )


def test_responses_item_of_unknown_type():
    row = {"messages": [*ITEMS, {"type": "computer_call"}]}
    with pytest.raises(TrajectoryError, match=r"item 12: .*computer_call"):
        to_trajectory(row, get_format("responses"))


def test_detection_by_shape():
    chat = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    calls = {"messages": [*chat["messages"], {"role": "tool", "content": "r"}]}
    detector = Detector([chat, calls, {"messages": ITEMS}])
    assert [detector.choose(r)[0].name for r in (chat, calls, {"messages": ITEMS})] == [
        "openai",
        "openai",
        "responses",
    ]
