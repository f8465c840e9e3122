"""The thresholds on real transcripts, checked on the output of ``sad spans --json`` alone.

The folder of the corpora is named by ``SAD_CORPORA``: JSONL files whose rows have ``raw`` (flat
text) or ``messages``, and the ``format`` their collector gave them. What belongs to whom is decided
here by reading the markers and roles anew; nothing of the package's own parsing is used.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from sad_components.viewer.spans import main

_FOLDER = os.environ.get("SAD_CORPORA")
pytestmark = pytest.mark.skipif(not _FOLDER, reason="SAD_CORPORA is not set")
FILES = sorted(Path(_FOLDER).glob("*.jsonl")) if _FOLDER else []
SUPERVISED = ("reason", "act")

REACT_LINE = re.compile(r"^(Thought|Action|ActionPath|Observation)(?: (\d+))?:", re.M)
CHATML_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>|\Z)", re.S)


def rows_of(path):
    with open(path, encoding="utf-8") as handle:
        rows = [json.loads(line) for line in handle if line.strip()]
    return [row for row in rows if "raw" in row or "messages" in row]


def char_kinds(item):
    """One kind per character; fails unless the spans cover the text in order."""
    kinds, position = [], 0
    for start, end, kind, _ in item["spans"]:
        assert start == position, "gap or overlap"
        assert end > start
        kinds += [kind] * (end - start)
        position = end
    assert position == len(item["text"]), "spans do not reach the end"
    return kinds


def share(kinds, wanted):
    return sum(k in wanted for k in kinds) / max(len(kinds), 1)


class Tally:
    def __init__(self):
        self.count = Counter()
        self.failures = []

    def marker_line(self, kinds, expected, where):
        if not kinds:
            return
        self.count["lines"] += 1
        if share(kinds, SUPERVISED) > 0.5:
            self.count["lines supervised"] += 1
            self.count["lines of the right kind"] += share(kinds, (expected,)) > 0.5
        else:
            self.failures.append(where)

    def observation(self, kinds, where):
        self.count["observation characters"] += len(kinds)
        wrong = sum(k in SUPERVISED for k in kinds)
        self.count["observation characters supervised"] += wrong
        if wrong:
            self.failures.append(where)

    def assistant(self, kinds):
        self.count["assistant characters"] += len(kinds)
        self.count["assistant characters supervised"] += sum(k in SUPERVISED for k in kinds)

    def ratio(self, part, whole):
        return self.count[part] / self.count[whole] if self.count[whole] else 1.0


def check_react(text, kinds, tally):
    """Numbered or not: a line belongs to its marker, an observation runs to the next one."""
    marks = list(REACT_LINE.finditer(text))
    for mark, following in zip(marks, [*marks[1:], None]):
        end = following.start() if following else len(text)
        if mark[1] == "Observation":
            tally.observation(kinds[mark.start() : end], text[mark.start() :][:80])
        else:
            line_end = text.find("\n", mark.end())
            line_end = len(text) if line_end < 0 else line_end
            expected = "act" if mark[1] == "Action" else "reason"
            tally.marker_line(kinds[mark.start() : line_end], expected, mark[0])


def check_prompt_lines(text, kinds, tally):
    position = 0
    for line in text.split("\n"):
        end = position + len(line)
        if line.startswith("> "):
            body = line[2:].lower()
            expected = "reason" if re.match(r"(think|actionpath)\b:?", body) else "act"
            tally.marker_line(kinds[position + 2 : end], expected, line[:60])
        else:
            tally.observation(kinds[position:end], line[:60])
        position = end + 1


def check_webshop(text, kinds, tally):
    marks = list(re.finditer(r"^(Action|Observation):", text, re.M))
    for mark, following in zip(marks, [*marks[1:], None]):
        end = following.start() if following else len(text)
        body = text[mark.end() : end].strip()
        if mark[1] == "Observation":
            tally.observation(kinds[mark.start() : end], text[mark.start() :][:80])
        else:
            expected = "reason" if body.startswith("think[") else "act"
            tally.marker_line(kinds[mark.start() : end], expected, body[:60])


def check_tags(content, kinds, tally):
    """Tags of one agent turn: thought before action."""
    for tag, expected in (("think", "reason"), ("action", "act"), ("tool_call", "act")):
        for found in re.finditer(rf"<{tag}>(.*?)(</{tag}>|\Z)", content, re.S):
            tally.marker_line(kinds[found.start() : found.end()], expected, found[0][:60])


def check_chatml(text, kinds, tally):
    for turn in CHATML_TURN.finditer(text):
        start, end = turn.span(2)
        if turn[1] == "assistant":
            tally.assistant(kinds[start:end])
            check_tags(turn[2], kinds[start:end], tally)
        else:
            tally.observation(kinds[start:end], turn[2][:60])


def parts_text(content):
    if isinstance(content, list):
        return "".join(p.get("text") or "" for p in content)
    return content or ""


def turns_of(entry):
    """What one entry of ``messages`` says, as (is it the agent, text) in order."""
    if "response" in entry:
        return [(True, entry["response"]), (False, entry.get("observation") or "")]
    kind = entry.get("type")
    if kind == "function_call":
        return []  # its JSON is laid out by the template
    if kind == "function_call_output":
        return [(False, parts_text(entry["output"]))]
    if kind == "reasoning":
        return [(True, "\n\n".join(p["text"] for p in entry["summary"] if p.get("text")))]
    return [(entry["role"] == "assistant", parts_text(entry.get("content")))]


def check_messages(row, item, kinds, tally):
    text, position = item["text"], 0
    for entry in row["messages"]:
        for is_agent, content in turns_of(entry):
            if not content:
                continue
            start = text.find(content, position)
            assert start >= 0, f"content not rendered: {content[:60]!r}"
            end = start + len(content)
            position = end
            if not is_agent:
                tally.observation(kinds[start:end], content[:60])
                continue
            tally.assistant(kinds[start:end])
            if "thought_action" in row["format"] or "react" in row["format"]:
                check_turn_markers(content, kinds[start:end], tally)


def check_turn_markers(content, kinds, tally):
    marks = [m for m in REACT_LINE.finditer(content) if m[1] != "Observation"]
    for mark, following in zip(marks, [*marks[1:], None]):
        end = following.start() if following else len(content)
        expected = "act" if mark[1] == "Action" else "reason"
        tally.marker_line(kinds[mark.start() : end], expected, content[mark.start() :][:60])


def has_agent_turn(row):
    if "raw" in row:
        text = row["raw"]
        return bool(re.search(r"^(?:> |Thought|Action)|<\|im_start\|>assistant", text, re.M))
    return any(is_agent and text for e in row["messages"] for is_agent, text in turns_of(e))


def check_row(row, item, tally):
    kinds = char_kinds(item)
    if "messages" in row:
        check_messages(row, item, kinds, tally)
        return
    text = row["raw"]
    assert item["text"] == text
    if row["format"].startswith("react"):
        check_react(text, kinds, tally)
    elif row["format"].startswith("gt_"):
        check_prompt_lines(text, kinds, tally)
    elif row["format"] == "action_think_bracket":
        check_webshop(text, kinds, tally)
    else:
        check_chatml(text, kinds, tally)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_thresholds(path, capsys):
    rows = rows_of(path)
    if not rows:
        pytest.skip(f"{path.name} holds no transcripts")
    assert main([str(path), "--json"]) == 0
    items = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [item["row"] for item in items] == list(range(len(rows)))
    tally = Tally()
    with_turn = cut = 0
    for row, item in zip(rows, items, strict=True):
        if has_agent_turn(row):
            with_turn += 1
            cut += item["skipped"] is None and any(s[2] in SUPERVISED for s in item["spans"])
        if item["skipped"] is None:
            check_row(row, item, tally)
    figures = {
        "rows cut": cut / max(with_turn, 1),
        "lines supervised": tally.ratio("lines supervised", "lines"),
        "right kind": tally.ratio("lines of the right kind", "lines supervised"),
        "assistant supervised": tally.ratio(
            "assistant characters supervised", "assistant characters"
        ),
    }
    with capsys.disabled():
        shown = ", ".join(f"{k} {v:.2%}" for k, v in figures.items())
        print(f"\n{path.name}: {cut}/{with_turn}; {shown}; {dict(tally.count)}")
    assert figures["rows cut"] >= 0.995
    assert tally.count["observation characters supervised"] == 0, tally.failures[:5]
    assert figures["lines supervised"] >= 0.98, tally.failures[:5]
    assert figures["right kind"] >= 0.99
    assert figures["assistant supervised"] >= 0.93
