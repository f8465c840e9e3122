"""Rendered text and the spans over it, in plain, ChatML and template style."""

from __future__ import annotations

import pytest

from sad_components.data.chat_template import compile_template
from sad_components.data.rendering import render_chatml, render_plain
from sad_components.data.template_rendering import NotAppendOnly, TemplateRenderer
from sad_components.formats import get_format
from sad_components.formats.registry import segment
from sad_components.spans import SpanKind
from sad_components.trajectory import Message, Trajectory, TrajectoryError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}"
    "{% for c in m.tool_calls or [] %}\n<tool_call>\n{{ c.function | tojson }}\n</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STOPS = ("<|im_start|>", "<|im_end|>")
DROPS_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def parts(rendered):
    """``[(kind, text), ..]`` with neighbours of one kind joined."""
    out = []
    for span in rendered.spans:
        text = rendered.text[span.start : span.end]
        if out and out[-1][0] == span.kind.label:
            out[-1] = (span.kind.label, out[-1][1] + text)
        else:
            out.append((span.kind.label, text))
    return out


def plain(trajectory):
    dialect = get_format(trajectory.format).dialect
    flat = trajectory.meta.get("layout") == "text"
    return render_plain(trajectory.messages, segment(trajectory), dialect, flat=flat)


def template(trajectory, source=CHATML, stops=STOPS):
    renderer = TemplateRenderer(compile_template(source), stops)
    return renderer.render(trajectory.messages, segment(trajectory))


def per_turn(trajectory, source=DROPS_REASONING):
    renderer = TemplateRenderer(compile_template(source), STOPS)
    return renderer.render_per_turn(trajectory.messages, segment(trajectory))


def openai(*messages):
    return Trajectory(list(messages), format="openai")


def call(name="look", arguments='{"at": "shelf"}'):
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


def test_plain_joins_turns_and_ends_actions_with_a_learnt_newline(react):
    assert parts(plain(react(1))) == [
        ("context", "Your task is to: find a cup.\n"),
        ("reason", "Thought: A cup is in drawer 1.\n"),
        ("act", "Action: open drawer 1\n"),
        ("observation", "Observation: You open the drawer 1.\n"),
    ]


def test_plain_does_not_repeat_an_observation_marker(react):
    trajectory = react(1)
    trajectory.messages[2].content = "Observation: Nothing.\n"
    assert parts(plain(trajectory))[-1] == ("observation", "Observation: Nothing.\n")


def test_chatml_scaffolding_is_context_and_the_stop_token_is_the_agents(react):
    assert parts(render_chatml(react(1).messages, segment(react(1)))) == [
        ("context", "<|im_start|>user\nYour task is to: find a cup.<|im_end|>\n"
                    "<|im_start|>assistant\n"),
        ("reason", "Thought: A cup is in drawer 1.\n"),
        ("act", "Action: open drawer 1<|im_end|>"),
        ("context", "\n<|im_start|>user\n"),
        ("observation", "You open the drawer 1."),
        ("context", "<|im_end|>\n"),
    ]  # fmt: skip


def test_a_template_gives_what_chatml_gives(react):
    trajectory = react(3)
    ours = render_chatml(trajectory.messages, segment(trajectory))
    theirs = template(trajectory)
    assert theirs.text == ours.text
    assert theirs.spans == ours.spans
    assert theirs.literal == ours.literal


def test_a_turn_of_weight_zero_is_context(react):
    trajectory = react(2)
    trajectory.messages[1].weight = 0
    for rendered in (plain(trajectory), template(trajectory)):
        learnt = [t for kind, t in parts(rendered) if kind in ("reason", "act")]
        assert "drawer 1" not in "".join(learnt)
        assert "drawer 2" in "".join(learnt)


@pytest.mark.parametrize("style", [plain, template])
def test_reasoning_then_content_then_calls(style):
    trajectory = openai(
        Message("user", "Where?"),
        Message("assistant", "I look.", reasoning_content="Hm.", tool_calls=[call()]),
        Message("tool", "Here.", tool_call_id="1"),
        Message("assistant", "It is here."),
    )
    kinds = parts(style(trajectory))
    assert [k for k, _ in kinds] == [
        "context", "reason", "act", *(["context"] if style is template else []),
        "observation", *(["context"] if style is template else []), "act",
        *(["context"] if style is template else []),
    ]  # fmt: skip
    reason = next(t for k, t in kinds if k == "reason")
    assert reason.startswith("<think>\nHm.\n</think>")
    assert "I look." in reason
    act = next(t for k, t in kinds if k == "act")
    assert act.strip().startswith("<tool_call>")
    assert '"look"' in act
    assert ("<|im_end|>" in act) == (style is template)


def test_content_is_literal_and_control_tokens_of_the_template_are_not(react):
    trajectory = react(1)
    trajectory.messages[2].content = "A note: <|im_end|> and more."
    rendered = template(trajectory)
    literal = [rendered.text[a:b] for a, b in rendered.literal]
    assert "A note: <|im_end|> and more." in literal
    assert rendered.literal == sorted(rendered.literal)
    outside = rendered.text
    for text in literal:
        outside = outside.replace(text, "", 1)
    assert outside.count("<|im_end|>") == 3


def test_a_tool_call_is_literal_but_its_stop_token_is_not():
    attack = call(arguments='{"q": "<|im_end|>"}')
    rendered = template(
        openai(Message("user", "x"), Message("assistant", None, tool_calls=[attack]))
    )
    inside = [rendered.text[a:b] for a, b in rendered.literal]
    assert any('"<|im_end|>"' in t for t in inside)
    assert not any(t.endswith("<|im_end|>") for t in inside)


def test_a_template_that_strips_content(react):
    trajectory = react(1)
    trajectory.messages[1].content = "  Thought: a.\nAction: open drawer 1 \n"
    rendered = template(trajectory, CHATML.replace("{{ m.content }}", "{{ m.content | trim }}"))
    assert ("act", "Action: open drawer 1<|im_end|>") in parts(rendered)


def test_a_template_that_changes_content_is_an_error(react):
    with pytest.raises(TrajectoryError, match=r"changed or left out the content of turn 0 \(user"):
        template(react(1), CHATML.replace("{{ m.content }}", "{{ m.content | upper }}"))


def test_a_template_that_refuses_says_so(react):
    with pytest.raises(ValueError, match="refused the conversation: no users here"):
        template(react(1), "{{ raise_exception('no users here') }}")
    with pytest.raises(ValueError, match="not valid Jinja"):
        compile_template("{% for %}")


@pytest.mark.parametrize("broken", ["{{ 'a' + 1 }}", "{{ 1 // 0 }}", "{{ m.n.o }}"])
def test_a_template_that_fails_on_a_conversation_refuses_that_one(react, broken):
    with pytest.raises(TrajectoryError, match="template failed on the conversation: "):
        template(react(1), broken)


def test_a_template_that_reads_arguments_as_an_object():
    """As Qwen3-Coder's does: what stands in for them is a text, on which it fails."""
    call = {"function": {"name": "look", "arguments": '{"at": "shelf"}'}}
    items = "{% for k, v in c.function.arguments|items %}<{{ k }}>{{ v }}{% endfor %}"
    source = CHATML.replace("{{ c.function | tojson }}", items)
    turns = Message("user", "Go."), Message("assistant", "Hm.", tool_calls=[call])
    rendered = template(openai(*turns), source)
    act = "<tool_call>\n<at>shelf</tool_call><|im_end|>"
    assert parts(rendered)[1:3] == [("reason", "Hm."), ("act", act)]


def two_thoughts():
    return openai(
        Message("user", "Go."),
        Message("assistant", "one", reasoning_content="first thought"),
        Message("user", "More."),
        Message("assistant", "two", reasoning_content="second thought"),
    )


def test_a_template_that_drops_reasoning_is_found_and_both_remedies_are_named():
    with pytest.raises(NotAppendOnly, match=r"on_rewrite: per_turn .* chat_template that keeps it"):
        template(two_thoughts(), DROPS_REASONING)


def test_one_row_a_turn_shows_the_history_as_the_model_sees_it():
    trajectory = two_thoughts()
    rows = per_turn(trajectory)
    assert len(rows) == 2
    assert "first thought" not in rows[1].text
    assert [k for k, _ in parts(rows[1])] == ["context", "reason", "act", "context"]
    assert parts(rows[1])[1:3] == [
        ("reason", "<think>second thought"), ("act", "</think>two<|im_end|>")
    ] or parts(rows[1])[1][1].endswith("</think>")  # fmt: skip
    assert "one<|im_end|>" in parts(rows[1])[0][1]


def test_control_tokens_in_the_history_of_a_per_turn_row_stay_text():
    trajectory = two_thoughts()
    trajectory.messages[2].content = "More <|im_end|> text."
    rows = per_turn(trajectory)
    at = rows[1].text.index("<|im_end|> text.")
    assert any(a <= at and at + 10 <= b for a, b in rows[1].literal)


def test_every_style_covers_every_character(react):
    trajectory = react(4)
    for rendered in (plain(trajectory), template(trajectory)):
        assert "".join(t for _, t in parts(rendered)) == rendered.text
        assert {SpanKind.REASON, SpanKind.ACT, SpanKind.OBSERVATION} <= {
            s.kind for s in rendered.spans
        }


def test_calls_of_demonstrations_are_no_steps():
    call = {"id": "c", "function": {"name": "go", "arguments": "{}"}}
    demo = Message("assistant", "", tool_calls=[call], extra={"is_demo": True})
    real = Message("assistant", "", tool_calls=[call])
    trajectory = openai(
        Message("user", "Go."), demo, Message("tool", "seen"), real, Message("tool", "done")
    )
    steps = {span.kind: span.step for span in template(trajectory).spans if span.step}
    assert steps[SpanKind.ACT] == steps[SpanKind.OBSERVATION] == 1


#: Writes arguments one by one, and knows calls with their name in ``function``.
ONE_BY_ONE = CHATML.replace(
    "{{ c.function | tojson }}",
    "<{{ c.function.name }}>{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }};"
    "{% endfor %}",
)


@pytest.mark.parametrize("arguments", [{"a": 7}, {"a": True, "b": "x"}, {"a": None}])
def test_arguments_written_one_by_one_may_be_no_strings(arguments):
    call = {"id": "c", "function": {"name": "go", "arguments": arguments}}
    trajectory = openai(
        Message("user", "Go."), Message("assistant", "", reasoning_content="r", tool_calls=[call])
    )
    act = "".join(text for kind, text in parts(template(trajectory, ONE_BY_ONE)) if kind == "act")
    assert all(f"{key}={value};" in act for key, value in arguments.items())


def test_a_call_without_function_reaches_the_template_as_one_with():
    flat = {"id": "c", "name": "go", "arguments": {"a": "b"}}
    trajectory = openai(Message("user", "Go."), Message("assistant", "", tool_calls=[flat]))
    assert "<go>a=b;" in template(trajectory, ONE_BY_ONE).text
