"""SWE-agent steps and history."""

from __future__ import annotations

import pytest

from sad_components.data.rendering import render_chatml
from sad_components.formats import get_format
from sad_components.formats.registry import segment, to_trajectory
from sad_components.trajectory import TrajectoryError

STEPS = [
    {
        "thought": "Look for the file.\n",
        "action": "find_file a.py\n",
        "response": "Look for the file.\n\n```\nfind_file a.py\n```",
        "observation": "```\nsubmit\n```\nThought: x",
    },
    {
        "thought": "Edit it.",
        "action": "edit 1:2\nx = 1\n\ny = 2\nend_of_edit",
        "response": "Edit it.\n```\nedit 1:2\nx = 1\n\ny = 2\nend_of_edit\n```",
        "observation": "",
    },
    {"thought": "", "action": "submit", "response": "submit", "observation": None},
]


def pieces(trajectory):
    return [
        (s.kind.label, m.text[s.start : s.end], s.step)
        for m, spans in zip(trajectory.messages, segment(trajectory), strict=True)
        for s in spans
    ]


@pytest.mark.parametrize("key", ["messages", "trajectory"])
def test_steps(key):
    found = pieces(to_trajectory({key: STEPS}, get_format("sweagent")))
    assert found == [
        ("reason", "Look for the file.\n\n", 1),
        ("act", "```\nfind_file a.py\n```", 1),
        ("observation", STEPS[0]["observation"], 1),
        ("reason", "Edit it.\n", 2),
        ("act", "```\nedit 1:2\nx = 1\n\ny = 2\nend_of_edit\n```", 2),
        ("act", "submit", 3),
    ]


def test_steps_without_a_response():
    step = {k: v for k, v in STEPS[0].items() if k != "response"}
    found = pieces(to_trajectory({"messages": [step]}, get_format("sweagent")))
    assert [(k, t) for k, t, _ in found][:2] == [
        ("reason", "Look for the file.\n"),
        ("act", "```\nfind_file a.py\n```"),
    ]


def test_history_with_calls_and_a_demonstration():
    call = {"id": "c", "type": "function", "function": {"name": "bash", "arguments": "{}"}}
    history = [
        {"role": "system", "content": "setting"},
        {"role": "user", "content": "a demonstration", "is_demo": True},
        {"role": "assistant", "content": "Do.\n```\nls\n```", "is_demo": True},
        {"role": "user", "content": "the issue"},
        {
            "role": "assistant",
            "content": "Look.",
            "thought": "Look.",
            "action": "ls",
            "tool_calls": [call],
        },
        {"role": "tool", "content": "a.py", "tool_call_ids": ["c"]},
        {
            "role": "assistant",
            "content": "Done.\n```\nsubmit\n```",
            "thought": "Done.",
            "action": "submit",
        },
    ]
    trajectory = to_trajectory({"history": history, "trajectory": STEPS}, get_format("sweagent"))
    assert [(k, t) for k, t, _ in pieces(trajectory)] == [
        ("context", "setting"),
        ("context", "a demonstration"),
        ("context", "Do.\n```\nls\n```"),
        ("context", "the issue"),
        ("reason", "Look."),
        ("observation", "a.py"),
        ("reason", "Done.\n"),
        ("act", "```\nsubmit\n```"),
    ]
    assert trajectory.messages[5].tool_call_id == "c"


def test_the_calls_of_a_demonstration_are_not_learnt():
    call = {"type": "function", "function": {"name": "bash", "arguments": "{}"}}
    demo = {"role": "assistant", "content": "Do.", "tool_calls": [call], "is_demo": True}
    task = {"role": "user", "content": "the issue"}
    turn = {"role": "assistant", "content": "Look.", "thought": "Look.", "action": "ls"}
    trajectory = to_trajectory({"history": [demo, task, turn]}, get_format("sweagent"))
    rendered = render_chatml(trajectory.messages, segment(trajectory))
    learnt = "".join(rendered.text[s.start : s.end] for s in rendered.spans if s.kind in (1, 2))
    assert learnt == "Look.<|im_end|>"


def test_entry_of_another_shape():
    with pytest.raises(TrajectoryError, match="entry 1 is neither"):
        to_trajectory({"messages": [STEPS[0], {"query": "x"}]}, get_format("sweagent"))
