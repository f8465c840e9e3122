"""Fuzzes every format by hand: ``python tests/fuzz_formats.py [minutes]`` (10 by default).

Draws texts from the formats' own markers and characters, cuts and truncates and splices them, and
checks that the spans cover the text, that only the agent's turns are supervised in chat, and that
nothing takes longer than its length allows. Prints the input of the first failure and stops with
status 1. It is not a test module: ``pytest`` does not collect it.
"""

from __future__ import annotations

import random
import sys
import time

from sad_components.formats import list_formats
from sad_components.formats.registry import all_evidence, segment, to_trajectory
from sad_components.spans import AGENT_KINDS, check_cover
from sad_components.trajectory import ROLES, TrajectoryError

SCRAPS = [
    *(f"{word} {n}: " for word in ("Thought", "Action", "ActionPath") for n in range(1, 5)),
    *(f"Observation {n}: x" for n in range(1, 5)),
    *("Thought: ", "Action: ", "Observation: ", "Final Answer: ", "Question: q", "Claim: c"),
    *("**Thought:** a", "thought 1: ", "action 1: ", "Observation 0: ", "It says:", "Input: "),
    *("Finish[a]", "search[b]", "click[Buy Now]", "think[c]", "reset", "Your score"),
    *("### Response:", "(END OF EXAMPLES)", "> ", ">", "> think: ", "> go", "OK.", "You see."),
    *("You are in the middle of a room.", "Your task is to: t", "Nothing happens."),
    *(f"<{end}{tag}>" for tag in ("think", "action", "tool_call", "result") for end in ("", "/")),
    *("<|im_start|>", "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>"),
    *("```", "[", "]", "\n", "\n", "\n\n", "\r\n", "\r", "\t", " ", "\u00a0", "\u2028", "\x85"),
    *("a", "1", ":", "\U0001f600", "\ud800", "e\u0301", "\x00", "\x1b[31m"),
]
TEXT = ("react", "alfworld", "webshop", "tags")
CHAT = ("react", "tags", "openai", "sweagent", "responses", "atif")


def scrap(rng: random.Random) -> str:
    pieces = [rng.choice(SCRAPS) for _ in range(rng.randrange(1, 60))]
    joint = rng.choice(["", "", "\n", " "])
    text = joint.join(pieces) * rng.choice([1, 1, 1, 2, 20])
    return text[rng.randrange(4) : len(text) - rng.randrange(4)] if len(text) > 8 else text


def check_text(text: str) -> None:
    for format in list_formats():
        if format.name not in TEXT:
            continue
        start = time.process_time()
        try:
            spans = format.segment_text(text)
        except TrajectoryError:
            continue
        check_cover(spans, len(text))
        steps = {s.step for s in spans if s.kind in AGENT_KINDS} - {0}  # WebShop's reset
        assert steps == set(range(1, len(steps) + 1)), "steps do not count up from 1"
        spent = time.process_time() - start
        assert spent < 0.05 + len(text) * 1e-5, f"{format.name}: {spent:.3f} s"


def check_chat(texts: list[str], rng: random.Random) -> None:
    messages = [{"role": rng.choice(ROLES), "content": text} for text in texts]
    for message in messages:
        if rng.random() < 0.1:
            message["tool_calls"] = [{"function": {"name": "f", "arguments": texts[0]}}]
    for format in list_formats():
        if format.name not in CHAT:
            continue
        cut = segment(to_trajectory({"messages": messages}, format))
        for message, spans in zip(messages, cut, strict=True):
            check_cover(spans, len(message["content"]))
            learnt = any(s.kind in AGENT_KINDS for s in spans)
            assert message["role"] == "assistant" or not learnt, "a message of others is learnt"


def main(minutes: float) -> int:
    """Runs for so many minutes; the exit status."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    end = time.monotonic() + minutes * 60
    count = characters = 0
    while time.monotonic() < end:
        texts = [scrap(rng) for _ in range(rng.randrange(1, 6))]
        count += 1
        characters += sum(map(len, texts))
        try:
            check_text(texts[0])
            check_chat(texts, rng)
            all_evidence({"raw": texts[0]})
        except Exception as error:
            print(f"seed {seed}, input {count}: {type(error).__name__}: {error}\n{texts!r}")
            return 1
    print(f"seed {seed}: {count} inputs, {characters} characters, no failure")
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 10))
