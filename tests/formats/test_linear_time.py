"""Every format takes time proportional to the text, on texts made to provoke the opposite."""

from __future__ import annotations

import time

import pytest

from sad_components.formats import list_formats
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
FORMATS = [f.name for f in list_formats() if f.name != "canonical"]


def attempt(name, text, as_chat):
    format = next(f for f in list_formats() if f.name == name)
    row = {"raw": text}
    if as_chat:
        row = {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
        }
    start = time.process_time()
    try:
        segment(to_trajectory(row, format))
    except TrajectoryError:
        pass
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
    start = time.process_time()
    all_evidence({"raw": text})
    return time.process_time() - start


def test_evidence_is_linear_too():
    for label, seed in SEEDS.items():
        small = seed * (8_000 // len(seed))
        fast, slow = (min(_evidence_time(t) for _ in range(3)) for t in (small, small * 8))
        assert slow < 24 * fast + 0.02, f"{label}: {fast:.4f} s, then {slow:.4f} s"
