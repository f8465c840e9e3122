"""ATIF documents."""

from __future__ import annotations

import pytest

from sad_components.formats import get_format
from sad_components.formats.registry import segment, to_trajectory
from sad_components.trajectory import TrajectoryError

DOCUMENT = {
    "schema_version": "ATIF-v1.8",
    "session_id": "s1",
    "agent": {"name": "tester", "version": "1", "model_name": "m"},
    "steps": [
        {"step_id": 1, "source": "system", "message": "rules"},
        {"step_id": 2, "source": "user", "message": [{"type": "text", "text": "task"}]},
        {
            "step_id": 3,
            "source": "agent",
            "message": "I search.",
            "reasoning_content": "hm",
            "tool_calls": [
                {"tool_call_id": "a", "function_name": "search", "arguments": {"q": "x"}},
                {"tool_call_id": "b", "function_name": "search", "arguments": {}},
            ],
            "observation": {
                "results": [
                    {"source_call_id": "a", "content": "found"},
                    {"source_call_id": "b", "content": None},
                    {"content": "Action: evil"},
                ]
            },
        },
        {"step_id": 4, "source": "agent", "message": "copied", "is_copied_context": True},
        {"step_id": 5, "source": "agent", "message": "answer"},
    ],
    "subagent_trajectories": [{"trajectory_id": "t"}],
}


def test_document():
    trajectory = to_trajectory(DOCUMENT, get_format("atif"))
    cut = segment(trajectory)
    found = [
        (m.role, [(s.kind.label, s.step) for s in spans])
        for m, spans in zip(trajectory.messages, cut, strict=True)
    ]
    assert found == [
        ("system", [("context", 0)]),
        ("user", [("context", 0)]),
        ("assistant", [("reason", 1)]),
        ("tool", [("observation", 1)]),
        ("tool", []),
        ("environment", [("observation", 1)]),
        ("assistant", [("context", 2)]),
        ("assistant", [("act", 3)]),
    ]
    assert trajectory.teacher == "m"
    assert trajectory.messages[2].tool_calls[0]["function"]["arguments"] == '{"q": "x"}'
    assert "sub-agent" in trajectory.meta["notes"][0]


def test_the_fixture_is_valid_atif():
    models = pytest.importorskip("atif", reason="the optional package atif is not installed")
    valid = {k: v for k, v in DOCUMENT.items() if k != "subagent_trajectories"}
    assert models.Trajectory.model_validate(valid).steps[2].tool_calls


def test_unknown_source():
    steps = [{"step_id": 1, "source": "robot", "message": "x"}]
    with pytest.raises(TrajectoryError, match=r"step 1: .*robot"):
        to_trajectory({**DOCUMENT, "steps": steps}, get_format("atif"))
