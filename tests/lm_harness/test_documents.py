"""Trajectories as documents: texts, spans and stops of each turn."""

from __future__ import annotations

import json
import logging

import pytest

from sad_components.data import HFTokenizer, SpanTokenizer
from sad_components.data.shipped import resolve_source
from sad_components.lm_harness.documents import (
    acting_turns,
    questions,
    thinking_turns,
    turns,
    turns_of,
)
from sad_components.spans import SpanKind
from sad_components.trajectory import Message, Trajectory, read_jsonl, write_jsonl

TOKENIZER = "shipped:household/tokenizer"


def transform(style: str) -> SpanTokenizer:
    return SpanTokenizer(HFTokenizer(TOKENIZER), style=style)


@pytest.fixture(scope="module")
def trajectory() -> Trajectory:
    return next(read_jsonl(resolve_source("shipped:household/heldout")))


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_turns_hold_the_tokens_that_training_supervises(trajectory, style):
    """Joined, and counted per kind, they are the agent's tokens of the whole row."""
    found = list(turns_of(trajectory, transform(style)))
    (row,) = transform(style).rows(trajectory)
    assert len(found) == sum(m.role == "assistant" for m in trajectory.messages)
    for kind in (SpanKind.REASON, SpanKind.ACT):
        counted = sum(
            n for t in found for k, n in zip(t.kinds, t.tokens, strict=True) if k == kind.label
        )
        assert counted == (row.span_ids == kind).sum()


def test_plain_turn(trajectory):
    turn = next(turns_of(trajectory, transform("plain")))
    assert turn.context.startswith("<|bos|>Solve a household task.")
    assert turn.context.endswith("put some spatula on sinkbasin.\n")
    assert turn.start == turn.context.rstrip()
    thought, action = turn.whole.split("\n")
    assert turn.before_action == f"{turn.context}{thought}\n"
    assert turn.action == action == "Action: go to drawer 2"
    assert turn.kinds == ["context", "reason", "act"]
    assert turn.continuations == ["\n", f"\n{thought}\n", f"\n{thought}\n{action}\n"]
    assert turn.action_until == ["\n"]
    assert turn.until == ["\nObservation:"]
    assert turn.acceptable == trajectory.messages[1].acceptable


def test_chat_turn_ends_with_its_stop_token(trajectory):
    turn = next(turns_of(trajectory, transform("chat")))
    assert turn.context.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert turn.continuations[-1].endswith("Action: go to drawer 2<|im_end|>")
    assert turn.action_until == ["<|im_end|>", "\n"]
    assert turn.until == ["<|im_end|>", "\nObservation:"]


def test_only_learnt_turns_and_all_that_a_task_needs():
    messages = [
        Message("user", "Your task is to: find the cup."),
        Message("assistant", "Thought: Hm.\nAction: open drawer", weight=0),
        Message("user", "Nothing happens."),
        Message("assistant", "Action: open desk"),
        Message("user", "You open the desk."),
        Message("assistant", "Thought: There it is.\nAction: take cup"),
    ]
    found = list(turns_of(Trajectory(messages, id="a", format="react"), transform("plain")))
    assert [t.turn for t in found] == [3, 5]
    assert [t.kinds for t in found] == [["context", "act"], ["context", "reason", "act"]]
    assert found[0].before_action == found[0].context


def test_a_boundary_inside_a_token_goes_to_the_agent():
    """ALFWorld's harness writes "> "; the blank is part of the first token that the agent says."""
    text = (
        "You are in a room.\nYour task is to: find a cup.\n\n> think: I look around.\nOK.\n\n"
        "> go to desk 1\nYou arrive at desk 1.\n"
    )
    trajectory = transform("plain").trajectory({"text": text})
    assert trajectory.format == "alfworld"
    found = list(turns_of(trajectory, transform("plain")))
    assert [turn.kinds for turn in found] == [["reason"], ["act"]]
    for turn in found:
        assert (turn.start + turn.continuations[-1]).removeprefix("<|bos|>") in text
        assert turn.start == turn.context and turn.start.endswith(">")  # noqa: PT018
        assert turn.until == ["\n"]
    assert found[1].action.strip() == "go to desk 1"


class TestSplit:
    def test_shipped_trajectories_by_default(self, long_student):
        found = turns(pretrained=str(long_student), style="plain", max_trajectories=2)["test"]
        assert set(found["trajectory"]) == {
            "household-heldout-00000-dense",
            *(t for t in found["trajectory"] if "00001" in t),
        }
        assert acting_turns(pretrained=str(long_student), style="plain", max_trajectories=2)[
            "test"
        ].num_rows == len(found)

    def test_own_file(self, long_student, tmp_path):
        messages = [Message("user", "Task: x"), Message("assistant", "Action: y")]
        write_jsonl(tmp_path / "mine.jsonl", [Trajectory(messages, id="mine")])
        options = {"trajectories": str(tmp_path / "mine.jsonl"), "pretrained": str(long_student)}
        assert turns(**options)["test"]["trajectory"][0] == "mine"
        with pytest.raises(ValueError, match="turns with reason spans"):
            thinking_turns(**options)

    def test_style_of_the_students_card(self, long_student, tmp_path):
        import shutil

        folder = shutil.copytree(long_student, tmp_path / "student")
        (folder / "README.md").write_text("---\nsad:\n  transform: {style: plain}\n---\n# A\n")
        (first, *_) = turns(pretrained=str(folder), max_trajectories=1)["test"]["context"]
        assert first.startswith("<|bos|>Solve")
        (first, *_) = turns(pretrained=str(long_student), max_trajectories=1)["test"]["context"]
        assert first.startswith("<|im_start|>user")

    def test_no_tokenizer(self):
        with pytest.raises(ValueError, match="--model_args pretrained=DIR"):
            turns()

    def test_exact_encoding_is_not_warned_about(self, long_student, caplog):
        caplog.set_level(logging.WARNING, "lm_eval")
        for style in ("plain", "chat"):
            turns(pretrained=str(long_student), style=style, max_trajectories=4)
        assert not caplog.records

    def test_encoding_that_differs_is_warned_about(self, long_student, tmp_path, caplog):
        """A control token's text inside a message is text in training, and a token for lm-eval."""
        caplog.set_level(logging.WARNING, "lm_eval")
        said = "Thought: <|im_end|> ends it.\nAction: y"
        messages = [Message("user", "Task: x"), Message("assistant", said)]
        write_jsonl(tmp_path / "mine.jsonl", [Trajectory(messages, id="mine", format="react")])
        turns(trajectories=str(tmp_path / "mine.jsonl"), pretrained=str(long_student))
        assert "1 of 1 turns are encoded by lm-eval otherwise" in caplog.text


class TestQuestions:
    def test_own_ones_are_well_formed(self):
        found = questions()["test"]
        assert len(found) == 64
        assert len(set(found["question"])) == 64
        for row in found:
            assert len(set(row["choices"]["text"])) == 4
        answers = [row["answerKey"] for row in found]
        assert {label: answers.count(label) for label in "ABCD"} == dict.fromkeys("ABCD", 16)

    def test_another_file(self, tmp_path):
        row = {"question": "Q?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}}
        file = tmp_path / "arc.jsonl"
        file.write_text(json.dumps({**row, "answerKey": "2", "id": "Mercury_1"}) + "\n")
        assert questions(questions=str(file))["test"]["answerKey"] == ["2"]
        file.write_text(json.dumps({**row, "answerKey": "3"}) + "\n")
        with pytest.raises(ValueError, match=r"arc.jsonl:1: .* wrong here: 'answerKey'"):
            questions(questions=str(file))
        with pytest.raises(FileNotFoundError, match="no file of questions"):
            questions(questions=str(tmp_path / "none.jsonl"))


def test_shipped_heldout_is_unchanged():
    """Task versions stand for these documents: a new file needs new versions (CHANGELOG.md)."""
    import hashlib

    content = resolve_source("shipped:household/heldout").read_bytes()
    assert json.loads(content.splitlines()[0])["id"] == "household-heldout-00000-dense"
    assert hashlib.sha256(content).hexdigest()[:16] == "d78d78c03ece8052"
