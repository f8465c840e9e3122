"""Which trajectories are kept, and the reason that each of the others gets."""

from __future__ import annotations

import pytest

from sad_components.data.filters import Filters, content_digest
from sad_components.data.options import from_mapping
from sad_components.trajectory import Message, Trajectory


@pytest.mark.parametrize(
    ("filters", "known", "reason"),
    [
        ({}, {}, None),
        ({"success": True}, {"success": True}, None),
        ({"success": True}, {"success": 1}, None),
        ({"success": True}, {"success": False}, "success is false"),
        ({"success": False}, {"success": True}, "success is true"),
        ({"success": False}, {"success": False}, None),
        ({"success": True}, {}, "no success recorded"),
        ({"success": True}, {"success": "yes"}, "success is recorded as 'yes', which"),
        ({"min_reward": 0.5}, {"score": 0.5}, None),
        ({"min_reward": 0.5}, {"score": 0.4}, "reward below min_reward 0.5"),
        ({"min_reward": 0.5}, {"meta": {"reward": 1}}, None),
        ({"min_reward": 0.5}, {}, "no reward recorded"),
        ({"min_steps": 3}, {}, None),
        ({"min_steps": 4}, {}, "fewer steps than min_steps 4"),
        ({"max_steps": 2}, {}, "more steps than max_steps 2"),
        ({"max_steps": 3}, {}, None),
    ],
)
def test_reasons(react, filters, known, reason):
    found = Filters(**filters).refuse(react(3, **known))
    assert found == reason if reason is None else found.startswith(reason)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"success": "true"}, "success is true, false or null; got 'true'"),
        ({"min_steps": 1.5}, "min_steps is a number; got 1.5"),
        ({"max_tokens": True}, "max_tokens is a number; got True"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens is at most max_tokens; got 9 and 3"),
        ({"duplicates": "remove"}, "duplicates is drop or keep; got 'remove'"),
        ({"max_step": 3}, r"filters takes no 'max_step' \(did you mean 'max_steps'\?\)"),
        ([1], r"filters is a mapping of keys; got \[1\]"),
    ],
)
def test_wrong_values_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        from_mapping(Filters, given, "filters")


def test_contents_are_equal_whatever_blanks_and_ids(react):
    first = react(2, id="a")
    second = react(2, id="b", success=True)
    second.messages[1].content = "Thought:  A cup is in drawer 1.\n\nAction: open drawer 1 "
    assert content_digest(first) == content_digest(second)
    second.messages[1].content = "Thought: A cup is in drawer 1.\nAction: open drawer 2"
    assert content_digest(first) != content_digest(second)


def test_calls_and_thoughts_are_content():
    def made(name="f", id="1", thought=None, role="assistant"):
        calls = [{"id": id, "function": {"name": name, "arguments": "{}"}}]
        turn = Message(role, None, tool_calls=calls, reasoning_content=thought)
        return content_digest(Trajectory([Message("user", "q"), turn]))

    assert made() == made(id="2")
    assert len({made(), made(name="g"), made(thought="hm"), made(role="user")}) == 4
