"""What the README shows is true of the tree: its example, its links, its names."""

from __future__ import annotations

import json
import re
from pathlib import Path

from sad_components.data import HFTokenizer, SpanTokenizer
from sad_components.formats import list_formats

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_example_trajectory_is_one_line_and_is_learnt_from():
    (block,) = re.findall(r"```json\n(.*?)```", README, re.S)
    records = [json.loads(line) for line in block.splitlines()]
    transform = SpanTokenizer(HFTokenizer("shipped:household/tokenizer"), style="plain")
    sample = transform(records[0])
    learnt = transform.tokenizer.decode([i for i in sample["labels"] if i != -100])
    assert learnt == "Thought: I need a cup first.\nAction: go to cabinet 1\n"


def test_links_and_configs_exist():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
    for name in re.findall(r"(?:--config|tune cp) (smollm2/\w+|tiny/\w+)", README):
        assert (ROOT / "configs" / f"{name}.yaml").is_file(), name


def test_number_of_formats():
    assert "| nine transcript formats" in README
    assert len([f for f in list_formats() if type(f).__module__.startswith("sad_comp")]) == 9
