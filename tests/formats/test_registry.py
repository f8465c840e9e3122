"""Detection, registration, and the way from rows to trajectories and back."""

from __future__ import annotations

import pytest

from sad_components import formats
from sad_components.formats import registry
from sad_components.formats.registry import Detector, segment, split_spans, to_trajectory
from sad_components.spans import Span, SpanKind
from sad_components.trajectory import Message, Trajectory, TrajectoryError

REACT = "Question: q\nThought 1: a\nAction 1: Finish[b]\n"
ALFWORLD = "Your task is to: q\n> think: a\nOK.\n> look\nA desk.\n"
ROWS = {
    "react": {"raw": REACT},
    "alfworld": {"raw": ALFWORLD},
    "webshop": {"raw": "Instruction: q\n\nAction: search[a]\nObservation: b\n"},
    "tags": {"raw": "q <think>a</think><action>b</action>"},
    "openai": {"messages": [{"role": "user", "content": "q"}, {"role": "tool", "content": "r"}]},
    "responses": {"messages": [{"type": "message", "role": "user", "content": "q"}]},
    "sweagent": {"messages": [{"action": "ls", "observation": "a", "response": "ls"}]},
    "atif": {"schema_version": "ATIF-v1.4", "steps": []},
    "canonical": {"format": "react", "messages": [{"role": "user", "content": "Thought: a"}]},
}


@pytest.fixture
def own_registry(monkeypatch):
    formats.list_formats()
    monkeypatch.setattr(registry, "_FORMATS", dict(registry._FORMATS))


def test_every_format_has_a_row_here():
    assert {f.name for f in formats.list_formats()} == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_auto_finds_the_format(name):
    format, why = Detector([ROWS[name]]).choose(ROWS[name])
    assert (format.name, bool(why)) == (name, True)


def test_auto_decides_row_by_row_and_says_why():
    detector = Detector(ROWS.values())
    assert [detector.choose(row)[0].name for row in ROWS.values()] == list(ROWS)
    assert "react fits" in detector.explain()
    assert f"of {len(ROWS)} sampled rows" in detector.explain()


def test_what_opens_a_text_weighs_more_than_what_it_quotes():
    react = REACT.replace("Action 1", f"Action 1: Search[x]\nObservation 1: {ALFWORLD}Action 2")
    assert Detector([{"raw": react}]).choose({"raw": react})[0].name == "react"
    alfworld = ALFWORLD + "> read note 1\n" + REACT
    assert Detector([{"raw": alfworld}]).choose({"raw": alfworld})[0].name == "alfworld"


@pytest.mark.parametrize("quoted", [REACT, ALFWORLD, "Action: click[a]\nObservation: b\n"])
def test_chatml_text_is_cut_by_its_turns_alone(quoted):
    turns = "<|im_start|>assistant\n<action>a</action><|im_end|>\n<|im_start|>user\n"
    row = {"raw": f"<|im_start|>user\n{quoted}<|im_end|>\n{turns}{quoted}<|im_end|>\n"}
    assert Detector([row]).choose(row)[0].name == "tags"


def test_the_file_decides_between_formats_that_fit_about_equally():
    quoting = {"raw": f"q\n{ALFWORLD}{ROWS['tags']['raw']}"}
    assert Detector([quoting]).choose(quoting)[0].name == "alfworld"
    assert Detector([ROWS["tags"]] * 3).choose(quoting)[0].name == "tags"


def test_auto_refuses_when_two_fit_equally(own_registry):
    class Twin(type(formats.get_format("react"))):
        name = "twin"

    formats.register_format(Twin)
    row = {"raw": REACT}
    with pytest.raises(TrajectoryError, match=r"'react' and 'twin' fit equally well.*name one"):
        Detector([row]).choose(row)
    with pytest.raises(TrajectoryError, match="fit equally well"):
        formats.detect([row])


def test_auto_refuses_when_nothing_fits():
    with pytest.raises(TrajectoryError, match="no transcript format fits"):
        formats.detect([{"raw": "Once upon a time."}])
    with pytest.raises(TrajectoryError, match="without rows"):
        formats.detect([])
    detector = Detector([ROWS["react"]])
    with pytest.raises(TrajectoryError, match="no transcript format fits"):
        detector.choose({"raw": "Once upon a time."})


def test_names(own_registry):
    with pytest.raises(ValueError, match="known: alfworld"):
        formats.get_format("nope")
    with pytest.raises(ValueError, match="non-empty name"):
        formats.register_format(formats.Format)

    class Other(formats.Format):
        name = "react"

    with pytest.raises(ValueError, match="registered already"):
        formats.register_format(Other)


def test_a_chat_goes_before_a_text_beside_it():
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Action: a"}]
    row = {"messages": turns, "text": "<|user|>q<|assistant|>Action: a"}
    format, _ = registry.detect([row])
    trajectory = to_trajectory(row, format)
    assert format.name == "react"
    assert [m.text for m in trajectory.messages] == ["q", "Action: a"]
    assert trajectory.meta == {"text": row["text"]}


def test_flat_text_round_trips_through_the_record():
    row = {"raw": ALFWORLD, "env": "alfworld", "source": "here", "format": "as found"}
    trajectory = to_trajectory(row, formats.get_format("alfworld"))
    assert "".join(m.text for m in trajectory.messages) == ALFWORLD
    assert [m.role for m in trajectory.messages][:2] == ["user", "assistant"]
    assert (trajectory.format, trajectory.env) == ("alfworld", "alfworld")
    again = Trajectory.from_dict(trajectory.to_dict())
    assert segment(again) == segment(trajectory)
    joined = []
    start = 0
    for message, spans in zip(again.messages, segment(again), strict=True):
        joined += [s.shifted(start) for s in spans]
        start += len(message.text)
    assert joined == formats.get_format("alfworld").segment_text(ALFWORLD)


def test_canonical_keeps_the_format_it_names():
    trajectory = to_trajectory(ROWS["canonical"], formats.get_format("canonical"))
    assert trajectory.format == "react"
    assert segment(trajectory) == [[Span(0, 10, SpanKind.CONTEXT)]]
    unnamed = to_trajectory(
        {"messages": [{"role": "user", "content": "q"}]}, formats.get_format("canonical")
    )
    unnamed.format = "canonical"
    with pytest.raises(TrajectoryError, match="names none"):
        segment(unnamed)


def test_wrong_shape_for_a_format():
    with pytest.raises(TrajectoryError, match="cuts flat text"):
        segment(Trajectory([Message("user", "q")], format="alfworld"))
    with pytest.raises(TrajectoryError, match="cuts chat messages"):
        to_trajectory({"raw": "q"}, formats.get_format("openai"))


def test_split_spans_across_messages():
    spans = [Span(0, 3, SpanKind.CONTEXT), Span(3, 9, SpanKind.ACT, 1, branch=True)]
    cut = split_spans(
        spans, [Message("user", "ab"), Message("assistant", "cdef"), Message("user", "ghi")]
    )
    assert cut == [
        [Span(0, 2, SpanKind.CONTEXT)],
        [Span(0, 1, SpanKind.CONTEXT), Span(1, 4, SpanKind.ACT, 1, branch=True)],
        [Span(0, 3, SpanKind.ACT, 1)],
    ]
