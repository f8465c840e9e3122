"""Every format takes time proportional to the text, on texts made to provoke the opposite."""

from __future__ import annotations

import gc
import time
from functools import partial

import pytest

from sad_components.formats import get_format, list_formats
from sad_components.formats.registry import all_evidence, segment, to_trajectory
from sad_components.trajectory import TrajectoryError

#: Repeated to the size wanted: markers that never close, never answer, never count up.
SEEDS = {
    "blank lines": "\n\n  \n",
    "spaces": " " * 50,
    "one long line": "Thought ",
    "thoughts": "Thought 1: a\n",
    "questions": "Question: q\nThought 1: a\nAction 1: Finish[b]\n",
    "actions": "Action: go[\n",
    "unnumbered": "Thought: a\nAction: b\nObservation: c\n",
    "brackets": "Action 1: Search[" + "[" * 20,
    "fences": "Action: x\n```\n",
    "glued": "Action: Thought: Thought 1: Action: search[",
    "prompts": "> think: a\n",
    "prompts answered": "> go\nYou see.\n> think: b\nOK.\n",
    "rooms": "You are in the middle of a room.\n\nYour task is to: a\n> look\n",
    "open tags": "<think><action><observation>",
    "closed tags": "</think></action>",
    "elements": "<think>a</think><action>b</action>",
    "chatml": "<|im_start|>assistant\n<think>",
    "chatml turns": "<|im_start|>assistant\nAction: a<|im_end|>\n",
    "webshop": "Action: think[a]\nObservation: OK.\n\n",
}
#: More of them, for a whole megabyte.
MORE_SEEDS = {
    "thoughts without a word": "Thought:\n",
    "other spellings": "**thought:**\n",
    "one tag": "<think>",
    "closing tags": "</observation>",
    "open brackets": "[",
    "fences alone": "```",
    "newlines": "\n",
    "prompts alone": "> ",
    "colons": "a:\n> go\n",
    "chatml headers": "<|im_start|>",
    "agent after agent": "<|im_start|>assistant\na<|im_end|>\n",
    "nested episodes": "Question: q\nThought 1: a\nAction 1: Search[b]\nObservation 1: c\n",
    "ends": "Thought: a\nAction: Finish[b]\nObservation: c\n",
    "instructions": "### Instruction:\n",
}
#: Turns as long as people's, in each format that reads text.
USUAL = {
    "react": "Thought: I should look for the lamp on the second desk.\nAction: Search[the lamp]\n"
    "Observation: There is a lamp, a book and a pen on the desk, and nothing else to see.\n",
    "alfworld": "> think: I should look for the lamp on the second desk.\nOK.\n> go to desk 2\n"
    "On the desk 2, you see a lamp 1, a book 3, and a pen 1.\n",
    "webshop": "Action: think[B01 is red and below 9 dollars.]\nObservation: OK.\n\n"
    "Action: click[B01]\nObservation: \n[Back to Search] \n[< Prev] \nRed lamp \n$8.00 \n\n",
    "tags": "<think>I should look for the lamp on the second desk.</think>\n"
    "<action>go to desk 2</action>\n<observation>On it you see a lamp, and a pen.</observation>\n",
}
FORMATS = [f.name for f in list_formats() if f.name != "canonical"]


def attempt(name, text, as_chat):
    format = next(f for f in list_formats() if f.name == name)
    row = {"raw": text}
    if as_chat:
        row = {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
        }
    return _seconds(lambda: segment(to_trajectory(row, format)))


def _seconds(work):
    """Without garbage collection, whose time depends on what else the process holds."""
    gc.disable()
    start = time.process_time()
    try:
        work()
    except TrajectoryError:
        pass
    finally:
        gc.enable()
    return time.process_time() - start


@pytest.mark.parametrize("as_chat", [False, True], ids=["text", "chat"])
@pytest.mark.parametrize("name", FORMATS)
def test_eight_times_the_text_takes_far_less_than_64_times(name, as_chat):
    for label, seed in SEEDS.items():
        small = seed * (8_000 // len(seed))
        fast = min(attempt(name, small, as_chat) for _ in range(3))
        slow = min(attempt(name, small * 8, as_chat) for _ in range(2))
        assert slow < 24 * fast + 0.02, f"{label}: {fast:.4f} s, then {slow:.4f} s"


def _evidence_time(text):
    return _seconds(lambda: all_evidence({"raw": text}))


@pytest.mark.parametrize("name", USUAL)
def test_a_megabyte_of_usual_turns_takes_less_than_a_second(name):
    text = USUAL[name] * (1_000_000 // len(USUAL[name]))
    format = get_format(name)
    assert min(_seconds(lambda: format.segment_text(text)) for _ in range(2)) < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", USUAL)
def test_four_times_a_quarter_megabyte_of_anything_takes_about_four_times_as_long(name):
    format = get_format(name)
    for label, seed in {**SEEDS, **MORE_SEEDS}.items():
        small = seed * (250_000 // len(seed))
        fast, slow = (_seconds(partial(format.segment_text, text)) for text in (small, small * 4))
        assert slow < 8 * fast + 0.05, f"{label}: {fast:.4f} s, then {slow:.4f} s"
        assert slow < 4, f"{label}: {slow:.4f} s for a megabyte"


def test_evidence_is_linear_too():
    for label, seed in SEEDS.items():
        small = seed * (8_000 // len(seed))
        fast, slow = (min(_evidence_time(t) for _ in range(3)) for t in (small, small * 8))
        assert slow < 24 * fast + 0.02, f"{label}: {fast:.4f} s, then {slow:.4f} s"
