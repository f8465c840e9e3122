"""Seconds that each text format takes to cut a megabyte: usual turns, and the worst lines known.

CPU time, one thread, garbage collection on, as users run it; the better of two.

    python benchmarks/bench_formats.py [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time

from sad_components.formats import get_format
from sad_components.trajectory import TrajectoryError

SIZE = 1_000_000

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object a format")
    arguments = parser.parse_args()
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    for name, usual in USUAL.items():
        times = {label: seconds(name, seed) for label, seed in {**SEEDS, **MORE_SEEDS}.items()}
        worst = max(times, key=times.__getitem__)
        row = {
            "format": name,
            "usual_s": round(seconds(name, usual), 3),
            "worst_s": round(times[worst], 3),
            "worst": worst,
            **machine,
        }
        text = f"{name:9} usual {row['usual_s']:.2f} s, worst {row['worst_s']:.2f} s ({worst})"
        print(json.dumps(row) if arguments.json else text, flush=True)


def seconds(name: str, seed: str, tries: int = 2) -> float:
    """CPU time of cutting a megabyte of ``seed``, the best of ``tries``."""
    format, text = get_format(name), seed * (SIZE // len(seed))
    taken = []
    for _ in range(tries):
        start = time.process_time()
        try:
            format.segment_text(text)
        except TrajectoryError:
            pass  # the time to find that out counts all the same
        taken.append(time.process_time() - start)
    return min(taken)


if __name__ == "__main__":
    main()
