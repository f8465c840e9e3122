"""ALFWorld prompt lines: thoughts with and without OK., plans, actions alone, quoted prompts."""

from __future__ import annotations

import pytest

from sad_components.formats import get_format
from sad_components.spans import SpanKind
from sad_components.trajectory import TrajectoryError

ROOM = "You are in the middle of a room. You see a desk 1, and a shelf 1.\n"
TASK = ("c", ROOM + "Your task is to: put a pen in shelf.\n")


def test_thoughts_answered_ok(assert_text):
    spans = assert_text(
        "alfworld",
        [
            TASK,
            ("c", "> "),
            ("r", "think: First I need a pen,\nthen the shelf.\n"),
            ("o", "OK.\n"),
            ("c", "> "),
            ("r", "think: The desk.\n"),
            ("o", "OK. \n"),
            ("c", "> "),
            ("a", "go to desk 1\n"),
            ("o", "On the desk 1, you see a pen 2.\n"),
            ("c", "> "),
            ("a", "take pen 2 from desk 1\n"),
            ("o", "Nothing happens.\n"),
            ("c", "> "),
        ],
    )
    agent = [(s.kind, s.step, s.branch) for s in spans if s.kind in (1, 2)]
    assert agent == [
        (SpanKind.REASON, 1, True),
        (SpanKind.REASON, 1, True),
        (SpanKind.ACT, 1, True),
        (SpanKind.ACT, 2, True),
    ]


def test_thoughts_without_answer_and_action_paths(assert_text):
    assert_text(
        "alfworld",
        [
            TASK,
            ("c", "> "),
            ("r", "Think: First.\n"),
            ("c", "> "),
            ("r", "ActionPath: Start\n"),
            ("c", "> "),
            ("r", "Think\n"),
            ("o", "Nothing happens.\n"),
            ("c", "> "),
            ("a", "go to shelf 1\n"),
            ("o", "On the shelf 1, you see nothing.\n"),
            ("c", "> "),
            ("r", "Think: cut in mid-sen"),
        ],
    )


def test_actions_alone(assert_text):
    assert_text(
        "alfworld",
        [
            TASK,
            ("c", "> "),
            ("a", "go to desk 1\n"),
            ("o", "On the desk 1, you see a pen 1.\n"),
            ("c", "> "),
            ("a", "put pen 1 in/on shelf 1\n"),
            ("o", "You put the pen 1 in/on the shelf 1.\nOK. \n"),
        ],
    )


@pytest.mark.parametrize(
    "quoted",
    [
        "> go to shelf 9\n",
        "> go to shelf 9\nsays the note.\n",
        "> think: obey the note\nsays the note.\n",
        ">> go to shelf 9\n",
        "  > go to shelf 9\n",
        "Thought: x\nAction: go\n",
    ],
)
@pytest.mark.parametrize("answer", ["OK.\n", ""])
def test_observation_that_quotes_prompt_lines(assert_text, quoted, answer):
    assert_text(
        "alfworld",
        [
            TASK,
            ("c", "> "),
            ("r", "think: The note.\n"),
            *([("o", answer)] if answer else []),
            ("c", "> "),
            ("a", "examine note 1\n"),
            ("o", f"You read the note 1. It says:\n{quoted}"),
            ("c", "> "),
            ("r", "think: The note lies.\n"),
            *([("o", answer)] if answer else []),
            ("c", "> "),
            ("a", "go to desk 1\n"),
            ("o", "On the desk 1, you see nothing.\n"),
        ],
    )


@pytest.mark.parametrize("answer", ["OK.\n", ""])
def test_what_answers_and_introduces_decides(assert_text, answer):
    assert_text(
        "alfworld",
        [
            TASK,
            ("c", "> "),
            ("a", "examine note 1\n"),
            ("o", "Thought: an answer unlike the others\n"),
            ("c", "> "),
            ("r", "think: The note.\n"),
            *([("o", answer)] if answer else []),
            ("c", "> "),
            ("a", "read note 1\n"),
            ("o", "It says:\n> think: obey\n"),
            ("c", "> "),
            ("a", "go to desk 1\n"),
            ("o", "The note again:\n> go to shelf 9\nNothing happens.\n"),
            ("c", "> "),
            ("a", "go to desk 2\n"),
            ("o", "You see nothing.\n> think: at the end\nsays the wall\n"),
        ],
    )


def test_few_shot_examples_in_windows_lines(assert_text):
    room = "You are in the middle of a room.\r\n\r\nYour task is to: look.\r\n\r\n"
    example = f"{room}> think: example\r\nOK.\r\n> look\r\nA desk.\r\n\r\n"
    assert_text(
        "alfworld",
        [
            ("c", example + room),
            ("c", "> "),
            ("r", "think: mine\r\n"),
            ("o", "OK.\r\n"),
            ("c", "> "),
            ("a", "look\r\n"),
            ("o", "A desk.\r\n"),
        ],
    )


def test_few_shot_examples_are_context(assert_text):
    example = f"{ROOM}Your task is to: look.\n> think: hm\nOK.\n> look\nYou see a desk 1.\n"
    assert_text(
        "alfworld",
        [
            ("c", f"Interact with a household. Here are two examples.\n{example}\n{example}\n"),
            ("c", "Here is the task.\n" + TASK[1]),
            ("c", "> "),
            ("a", "look\n"),
            ("o", "You see a desk 1.\n"),
        ],
    )


def test_nothing_to_cut():
    with pytest.raises(TrajectoryError, match="prompt"):
        get_format("alfworld").segment_text("Your task is to: wait.\n")
