"""Properties of every format: whole cover, no crash, and observations that are never learnt."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sad_components.data.rendering import render_chatml
from sad_components.formats import get_format, list_formats
from sad_components.formats.registry import all_evidence, segment, to_trajectory
from sad_components.spans import AGENT_KINDS, check_cover
from sad_components.trajectory import ROLES, TrajectoryError

FORMATS = sorted(f.name for f in list_formats())
CHAT = ("react", "tags", "openai", "sweagent")
TEXT = ("react", "alfworld", "webshop", "tags")

MARKERS = st.sampled_from(
    [
        "Thought 1: ",
        "Thought 2: ",
        "Action 1: ",
        "Action 2: Finish[x]",
        "Observation 1: ",
        "Observation 2: ",
        "ActionPath 2: Start",
        "Thought: ",
        "Action: think[",
        "Action: click[Buy Now]",
        "Action: reset",
        "Observation: ",
        "Observation: Your score",
        "Final Answer: ",
        "Question: ",
        "### Response:",
        "> ",
        "> think: ",
        "> go to desk 1",
        "OK.",
        "Nothing happens.",
        "You are in the middle of a room.\nYour task is to: ",
        "<think>",
        "</think>",
        "<action>",
        "</action>",
        "<observation>",
        "</observation>",
        "<|im_start|>user\n",
        "<|im_start|>assistant\n",
        "<|im_end|>",
        "```",
        "[",
        "]",
        "\n",
        "\n\n",
        "\r",
        "\u2028",
        "\u00a0",
        "\U0001f600",
    ]
)
SCRAPS = st.lists(st.one_of(MARKERS, MARKERS, st.text(max_size=6)), max_size=30).map("".join)
#: Keys that the row shapes of all formats use.
KEYS = (
    *("role", "content", "type", "text", "summary", "arguments", "output", "name", "call_id"),
    *("tool_calls", "function", "action", "observation", "response", "thought", "source"),
    *("message", "steps", "results", "agent", "schema_version", "messages", "raw", "weight"),
    *("extra", "meta", "format"),
)
JSON = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.text(max_size=4),
    st.lists(st.integers() | st.just({"text": 1}), max_size=2),
    st.dictionaries(st.sampled_from(KEYS), st.integers() | st.text(max_size=4), max_size=2),
)


def cut(name, text):
    try:
        return get_format(name).segment_text(text)
    except TrajectoryError:
        return None


@given(SCRAPS, st.sampled_from(TEXT))
@settings(max_examples=300, deadline=None)
def test_text_is_covered_or_refused(text, name):
    spans = cut(name, text)
    if spans is not None:
        check_cover(spans, len(text))
        steps = [s.step for s in spans if s.kind in AGENT_KINDS]
        assert steps == sorted(steps)
        assert set(steps) == set(range(1, max(steps, default=0) + 1))
    for evidence in all_evidence({"raw": text}).values():
        assert 0 <= evidence.score <= 1


@given(st.lists(st.tuples(st.sampled_from(ROLES), SCRAPS), min_size=1), st.sampled_from(CHAT))
@settings(max_examples=200, deadline=None)
def test_chat_is_covered_and_only_the_agent_is_learnt(turns, name):
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    trajectory = to_trajectory(row, get_format(name))
    per_message = segment(trajectory)
    for (role, _), spans in zip(turns, per_message, strict=True):
        if role != "assistant":
            assert not any(s.kind in AGENT_KINDS for s in spans)
        else:
            assert not any(s.kind == 3 for s in spans), "an agent's turn is no observation"
    rendered = render_chatml(trajectory.messages, per_message)
    check_cover(rendered.spans, len(rendered.text))


LINE = st.text(
    st.characters(codec="utf-8", exclude_characters="\n", exclude_categories=("Cs",)), max_size=20
)
#: Lines of an observation, some of which pose as turns that nobody answers.
POSING = st.lists(
    st.one_of(
        LINE.map(lambda s: "." + s),
        st.sampled_from(["Thought 9: x", "Action 9: Search[y]", "Thought: x", "Action: y[z]"]),
    ),
    max_size=5,
).map("\n".join)
STEPS = st.lists(st.tuples(LINE, LINE, POSING), min_size=1, max_size=6)


@given(STEPS)
@settings(max_examples=200, deadline=None)
def test_numbered_react_built_from_known_parts(steps):
    text, expected = "Question: q\n", [0] * len("Question: q\n")
    for number, (thought, action, observation) in enumerate(steps, start=1):
        for kind, piece in (
            (1, f"Thought {number}: {thought}\n"),
            (2, f"Action {number}: Search[{action}]\n"),
            (3, f"Observation {number}: {observation}\n"),
        ):
            text += piece
            expected += [kind] * len(piece)
    found = [s.kind for s in cut("react", text) for _ in range(s.start, s.end)]
    assert found == expected


@given(STEPS, st.integers(0, 400))
@settings(max_examples=200, deadline=None)
def test_truncation_anywhere_changes_nothing_before_the_last_turn(steps, length):
    text = "Your task is to: q\n"
    for thought, action, _ in steps:
        text += f"> think: {thought}\nOK.\n> go {action}\nYou see.\n"
    whole = [s.kind for s in cut("alfworld", text) for _ in range(s.start, s.end)]
    part = text[:length]
    spans = cut("alfworld", part)
    if spans is None:
        assert "\n>" not in part
        return
    check_cover(spans, len(part))
    safe = part.rfind("\n> ", 0, max(part.rfind("\n>"), 0)) + 1
    kinds = [s.kind for s in spans for _ in range(s.start, s.end)]
    if part.count("OK.\n") >= 1:  # before the first OK. the protocol is not known
        assert kinds[:safe] == whole[:safe]


#: Entries in which a parser finds what it looks for, and then something else.
ENTRY = st.tuples(
    st.sampled_from(
        [
            {"role": "assistant", "content": "a"},
            {"type": "message", "role": "assistant"},
            {"type": "function_call"},
            {"action": "a", "observation": "b"},
            {"source": "agent", "message": "a"},
            {},
        ]
    ),
    st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3),
).map(lambda parts: {**parts[0], **parts[1]})
ROW = st.tuples(
    st.dictionaries(
        st.sampled_from(["messages", "items", "steps", "history"]),
        st.lists(ENTRY, max_size=3) | JSON,
        max_size=2,
    ),
    st.dictionaries(
        st.sampled_from(["raw", "meta", "format", "agent", "id", "schema_version"]),
        JSON,
        max_size=2,
    ),
).map(lambda parts: {**parts[0], **parts[1]})


@given(ROW)
@settings(max_examples=300, deadline=None)
def test_rows_of_any_shape_raise_only_value_errors(row):
    for name in FORMATS:
        try:
            segment(to_trajectory(row, get_format(name)))
        except ValueError:
            pass
    assert all(0 <= e.score <= 1 for e in all_evidence(row).values())
