"""The one-render path gives what rendering every prefix gives, or goes back to it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sad_components.data.chat_template import compile_template
from sad_components.data.rendering import Rendered
from sad_components.data.template_rendering import NotAppendOnly, TemplateRenderer
from sad_components.formats.registry import segment
from sad_components.trajectory import Message, Trajectory, TrajectoryError

STOPS = ("<|im_start|>", "<|im_end|>")
#: As Qwen 2.5 has it: a default system turn, tool calls, tool answers inside a user turn.
TOOLS = """\
{%- if messages[0].role != 'system' %}<|im_start|>system
You are helpful.<|im_end|>
{% endif %}
{%- for m in messages %}
{%- if m.role == 'tool' %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ m.role }}
{% if m.reasoning_content %}<think>
{{ m.reasoning_content.strip('\\n') }}
</think>

{% endif %}{{ m.content }}
{%- for call in m.tool_calls or [] %}
{%- if not loop.first or m.content %}{{ '\\n' }}{% endif %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
#: As Qwen 3 has it: reasoning stays only behind the last question; it is also read out of content.
LAST_QUESTION = """\
{%- set ns = namespace(last=0) %}
{%- for m in messages %}
{%- if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{%- set content = m.content %}
{%- set reasoning = m.reasoning_content or '' %}
{%- if '</think>' in content %}
{%- set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}<|im_start|>assistant
{% if loop.index0 > ns.last and (loop.last or reasoning) %}<think>
{{ reasoning }}
</think>

{% endif %}{{ content }}<|im_end|>
{% else %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
#: As Llama 3 has it: contents trimmed.
TRIMS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content | trim }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
#: A template may read the texts: then only the reference is right.
READS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}"
    "{% if 'Action' in m.content %} (acts){% endif %}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"tools": TOOLS, "trims": TRIMS, "reads": READS, "last question": LAST_QUESTION}
TEXTS = st.sampled_from(
    [
        "go",
        " go \n",
        "a",
        "Action: look",
        "<|im_end|>",
        "<think>x</think>y",
        "im_start",
        "\ue0000\ue001",
    ]
) | st.text(st.sampled_from('ab \n<|>"\\é😀{}'), max_size=12)


def counted(source):
    """The template, and the list of what it was asked for."""
    apply, calls = compile_template(source), []

    def counting(messages, add_generation_prompt):
        calls.append(len(messages))
        return apply(messages, add_generation_prompt)

    return counting, calls


def question(texts, reasoning=True):
    """An exchange in which every agent turn reasons and calls a tool."""
    messages = [Message("user", texts[0])]
    for k, text in enumerate(texts[1:]):
        call = {"id": f"c{k}", "function": {"name": "look", "arguments": f'{{"at": "{k}"}}'}}
        think = f"hm {text}" if reasoning else None
        messages += [
            Message("assistant", text, reasoning_content=think, tool_calls=[call]),
            Message("tool", f"seen {text}", tool_call_id=f"c{k}"),
        ]
    return Trajectory(messages, format="openai")


@st.composite
def conversations(draw, mark):
    """Exchanges of any shape; ``mark(k)`` goes in front of the k-th text."""
    count = iter(range(100))

    def text():
        return mark(next(count)) + draw(TEXTS)

    messages = [Message("user", text())]
    for _ in range(draw(st.integers(1, 3))):
        arguments = draw(st.sampled_from(['{"q": "%s<|im_end|>"}', '{"%s": 1}', "%s not json"]))
        call = {"function": {"name": "f", "arguments": arguments % mark(next(count))}}
        messages += [
            Message(
                "assistant",
                text(),
                reasoning_content=(draw(st.booleans()) and text()) or None,
                tool_calls=draw(st.sampled_from([None, [call]])),
                weight=draw(st.sampled_from([None, 0])),
            ),
            Message(draw(st.sampled_from(["user", "tool"])), text()),
        ]
    return Trajectory(messages, format="openai")


def outcome(render, trajectory):
    try:
        return render(trajectory.messages, segment(trajectory))
    except TrajectoryError as error:
        return type(error), str(error)


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trajectory=conversations(lambda k: f"«{k}»"))
def test_fast_is_reference(source, trajectory):
    renderer = TemplateRenderer(compile_template(source), STOPS)
    fast = outcome(renderer.render, trajectory)
    reference = outcome(renderer.render_by_prefixes, trajectory)
    if isinstance(fast, Rendered) and isinstance(reference, Rendered):
        assert without_blanks(fast) == without_blanks(reference)
    elif fast != reference:  # the reference gives up where it would have to guess
        assert "holds the text of a control token" in reference[1]


def test_a_line_end_that_the_template_writes_anew_belongs_to_neither():
    """Found by the test above, rarely: a thought that ends in one, stripped by the template."""
    messages = [
        Message("user", "«0»go"),
        Message("assistant", "«2»go", reasoning_content="«3»\n"),
        Message("user", "«4»go"),
    ]
    trajectory = Trajectory(messages, format="openai")
    renderer = TemplateRenderer(compile_template(TEMPLATES["tools"]), STOPS)
    fast = outcome(renderer.render, trajectory)
    assert without_blanks(fast) == without_blanks(outcome(renderer.render_by_prefixes, trajectory))


def without_blanks(rendered):
    """A rendering whose literal pieces end where their blanks begin: none is a control token."""
    text = rendered.text
    literal = [(a, a + len(text[a:b].rstrip())) for a, b in rendered.literal]
    return text, rendered.spans, literal


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trajectory=conversations(lambda k: ""))
def test_whatever_is_said_the_control_tokens_are_the_templates(source, trajectory):
    renderer = TemplateRenderer(compile_template(source), STOPS)
    rendered = outcome(renderer.render, trajectory)
    if not isinstance(rendered, tuple):
        for token in STOPS:
            assert _control(rendered, token) == _control_of_template(trajectory, source, token)


def test_a_known_shape_costs_one_render():
    apply, calls = counted(TOOLS)
    renderer = TemplateRenderer(apply, STOPS)
    for texts in (["q", "a", "b", "c"], ["r", "d", "e", "f"]):
        calls.clear()
        trajectory = question(texts)
        renderer.render(trajectory.messages, segment(trajectory))
    assert calls == [7]
    calls.clear()
    renderer.render_by_prefixes(trajectory.messages, segment(trajectory))
    assert len(calls) == 10


def test_tool_calls_and_reasoning_are_placed():
    trajectory = question(["q", "look"])
    rendered = TemplateRenderer(compile_template(TOOLS), STOPS).render(
        trajectory.messages, segment(trajectory)
    )
    text = {
        kind: "".join(
            rendered.text[s.start : s.end] for s in rendered.spans if s.kind.label == kind
        )
        for kind in ("reason", "act", "observation")
    }
    assert text["reason"] == "<think>\nhm look\n</think>\n\nlook"
    assert text["act"] == (
        '\n<tool_call>\n{"name": "look", "arguments": {"at": "0"}}\n</tool_call><|im_end|>'
    )
    assert text["observation"] == "seen look"


def two_questions():
    return Trajectory(
        [
            Message("user", "Go."),
            Message("assistant", "one", reasoning_content="first thought"),
            Message("user", "More."),
            Message("assistant", "two", reasoning_content="second thought"),
        ],
        format="openai",
    )


@pytest.mark.parametrize("inline", [False, True])
def test_a_template_that_drops_earlier_reasoning_is_found(inline):
    trajectory = two_questions()
    if inline:
        for message in trajectory.messages[1::2]:
            message.content = f"<think>\n{message.reasoning_content}\n</think>\n\n{message.content}"
            message.reasoning_content = None
    renderer = TemplateRenderer(compile_template(LAST_QUESTION), STOPS)
    with pytest.raises(NotAppendOnly, match=r"on_rewrite: per_turn .* chat_template that keeps it"):
        renderer.render(trajectory.messages, segment(trajectory))


def test_within_one_question_the_same_template_is_append_only():
    trajectory = question(["q", "a", "b"])
    for message in trajectory.messages:
        message.tool_calls = None
    renderer = TemplateRenderer(compile_template(LAST_QUESTION), STOPS)
    rendered = renderer.render(trajectory.messages, segment(trajectory))
    assert rendered.text.count("<think>") == 2
    assert rendered == renderer.render_by_prefixes(trajectory.messages, segment(trajectory))


@pytest.mark.parametrize(("reasoning", "what"), [(True, "reasoning"), (False, "tool calls")])
def test_a_left_out_tool_call_or_thought_is_an_error(reasoning, what):
    renderer = TemplateRenderer(compile_template(TRIMS), STOPS)
    trajectory = question(["q", "a"], reasoning=reasoning)
    with pytest.raises(TrajectoryError, match=rf"left out the {what} of turn 1 .*style: plain"):
        renderer.render(trajectory.messages, segment(trajectory))


def test_a_name_with_a_control_token_is_refused():
    trajectory = question(["q", "a"])
    trajectory.messages[1].tool_calls[0]["function"]["name"] = "x<|im_end|>"
    with pytest.raises(TrajectoryError, match="hold no text of control tokens"):
        TemplateRenderer(compile_template(TOOLS), STOPS).render(
            trajectory.messages, segment(trajectory)
        )


def _control(rendered, token):
    inside = sum(rendered.text[a:b].count(token) for a, b in rendered.literal)
    return rendered.text.count(token) - inside


def _control_of_template(trajectory, source, token):
    """How often the template itself writes ``token``: its text for harmless contents."""
    mute = [{"role": m.role, "content": "x" if m.text.strip() else ""} for m in trajectory.messages]
    return compile_template(source)(mute, False).count(token)
