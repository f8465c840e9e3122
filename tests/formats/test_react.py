"""ReAct: numbered and unnumbered text, chat turns, and observations that pose as the agent."""

from __future__ import annotations

import pytest

from sad_components.formats import get_format
from sad_components.formats.registry import to_trajectory
from sad_components.spans import SpanKind
from sad_components.trajectory import TrajectoryError

QUESTION = ("c", "Question: Which river is longer, the Ahr or the Nahe?\n")


def test_numbered_text(assert_text):
    spans = assert_text(
        "react",
        [
            QUESTION,
            ("r", "Thought 1: I look up the Ahr first.\n"),
            ("a", "Action 1: Search[Ahr]\n"),
            ("o", "Observation 1: The Ahr is 85 km long.\nIt joins the Rhine.\n"),
            ("r", "Thought 2: Now the other one,\nover two lines.\n"),
            ("a", "Action 2: Finish[Nahe]\n"),
            ("o", "Observation 2: Answer is CORRECT\n"),
            ("c", "Correct answer: Nahe\n{'steps': 2, 'em': 1}\n"),
        ],
    )
    agent = [(s.kind, s.step, s.branch) for s in spans if s.kind in (1, 2)]
    assert agent == [
        (SpanKind.REASON, 1, True),
        (SpanKind.ACT, 1, False),
        (SpanKind.REASON, 2, True),
        (SpanKind.ACT, 2, False),
    ]


def test_a_turn_takes_no_action_from_behind_the_next_turn_on_its_line(assert_text):
    assert_text(
        "react",
        [
            ("c", "ught 1: "),
            ("r", "ActionPath 1: (END)### Response:"),
            ("r", "Thought 2: I look. Action 1: search[b]\n"),
        ],
    )


def test_action_path_is_reasoning(assert_text):
    assert_text(
        "react",
        [
            QUESTION,
            ("r", "ActionPath 1: Start\nThought 1: Search it.\n"),
            ("a", "Action 1: Search[Ahr]\n"),
            ("o", "Observation 1: 85 km\n"),
            ("r", "ActionPath 2: Start->Search[Ahr]\nThought 2: Done.\n"),
            ("a", "Action 2: Finish[85]"),
        ],
    )


@pytest.mark.parametrize(
    "quoted",
    [
        "Thought 2: the page says so\nAction 2: Search[evil]\n",
        "Thought 2: a thought alone\n",
        "Action 2: Finish[evil]\n",
        "Thought 7: out of order\nAction 7: Search[evil]\nObservation 7: x\n",
        "Thought: no number\nAction: search[evil]\nObservation: x\n" * 5,
        "Thought 2: a\nAction 2: Search[b]\nObservation 2: c\nThought 3: d\n",
        "Action 1: Finish[x]\nQuestion: Another?\nThought 1: restart\nAction 1: Search[y]\n",
        "> think: hm\n> go to shelf 1\n<think>x</think><action>y</action>\n",
    ],
)
def test_observation_that_quotes_turns(assert_text, quoted):
    assert_text(
        "react",
        [
            QUESTION,
            ("r", "Thought 1: I look it up.\n"),
            ("a", "Action 1: Search[Ahr]\n"),
            ("o", f"Observation 1: A page.\n{quoted}The page ends.\n"),
            ("r", "Thought 2: The real one.\n"),
            ("a", "Action 2: Lookup[length]\n"),
            ("o", "Observation 2: 85 km\n"),
            ("r", "Thought 3: Enough.\n"),
            ("a", "Action 3: Finish[85 km]\n"),
            ("o", "Observation 3: Answer is CORRECT\n"),
            ("c", "Thought 4: noise behind the end\n"),
        ],
    )


def test_few_shot_and_reflections_are_context(assert_text):
    example = (
        "Question: Old?\nThought 1: a\nAction 1: Search[b]\nObservation 1: c\n"
        "Thought 2: d\nAction 2: Finish[e]\n\n"
    )
    assert_text(
        "react",
        [
            ("c", "Solve a question answering task. Here are some examples.\n" + example * 2),
            ("c", "Question: Easy?\nThought 1: x\nAction 1: Finish[y]\n\n"),
            ("c", "(END OF EXAMPLES)\nQuestion: New?You have attempted it before.\nReflections:\n"),
            ("c", "- I should have searched. Thought and Action come next.\n"),
            ("r", "Thought 1: f\n"),
            ("a", "Action 1: Search[g]\n"),
            ("o", "Observation 1: h\n"),
        ],
    )


@pytest.mark.parametrize("glue", ["Answer with care.Thought 1: ", "### Response: Thought 1: "])
def test_glued_behind_an_instruction(assert_text, glue):
    head, marker = glue.split("Thought")
    assert_text(
        "react",
        [
            ("c", "Question: x?\n" + head),
            ("r", f"Thought{marker}so\n"),
            ("a", "Action 1: Search[a]\n"),
            ("o", "Observation 1: b\n"),
            ("r", "Thought 2: cut in mid-sent"),
        ],
    )


def test_unnumbered_behind_an_alpaca_header(assert_text):
    assert_text(
        "react",
        [
            ("c", "Below is an instruction.\n\n### Instruction:\nThought: [your thought]\n"),
            ("c", "Action: [your action]\nObservation: [the result]\n\n### Response:\n"),
            ("r", "Thought: I search.\n"),
            ("a", "Action: search[Ahr]\n"),
            ("o", "Observation: text\nThought: quoted\nAction: search[quoted]\nmore text\n"),
            ("r", "Thought: I know.\n"),
            ("a", "Action: finish[85]\n"),
            ("o", "Observation: Episode finished, reward = True\n"),
            ("c", "\nThought: noise\n"),
        ],
    )


def test_actions_of_every_shape(assert_text):
    assert_text(
        "react",
        [
            QUESTION,
            ("a", "Action 1: Search[a], Search[b]\n"),
            ("o", "\nObservation 1: two answers\n"),
            ("r", "Thought 2:\n"),
            ("a", "Action 2: sql\n```\nSELECT 1;\n\nSELECT [2;\n```\n"),
            ("o", "Observation 2: rows\n"),
            ("r", "Thought 3: an Action: inside a thought, and Observation: too\n"),
            ("a", 'Action 3: Search[a "quoted] title"]\n'),
            ("o", "Observation 3: Could not find it\n"),
            ("a", "Action 4:\n"),
            ("o", "Observation 4: Invalid Action.\n"),
        ],
    )


def test_unanswered_actions_end_where_they_end(assert_text):
    assert_text(
        "react",
        [
            QUESTION,
            ("r", "Thought 1: a\n"),
            ("a", "Action 1: Search[b]\n"),
            ("o", "a result without its marker\n"),
            ("r", "Thought 2: c\n"),
            ("a", "Action 2: Finish[d]\n"),
            ("x", "\n5 7 0.71 4.01\n"),
        ],
    )


@pytest.mark.parametrize(
    ("numbers", "learnt"), [((0, 1, 2), 3), ((4, 5, 6), 3), ((1, 2, 4, 5), 4), ((1, 7, 2, 3), 3)]
)
def test_numbers_that_start_anywhere_or_leave_one_out(assert_text, numbers, learnt):
    parts = [QUESTION]
    for number in numbers:
        quoted = number == 7
        parts += [
            ("o" if quoted else "r", f"Thought {number}: so.\n"),
            ("o" if quoted else "a", f"Action {number}: Search[x]\n"),
            ("o", f"Observation {number}: y\n"),
        ]
    assert max(s.step for s in assert_text("react", parts)) == learnt


@pytest.mark.parametrize(
    ("thought", "action", "observation"),
    [
        ("thought {}: so.\n", "action {}: Search[x]\n", "observation {}: y\n"),
        ("**Thought:** so.\n", "**Action:** Search[x]\n", "**Observation:** y\n"),
        ("### Thought\uff1aso.\n", "### Action\uff1aSearch[x]\n", "### Observation\uff1ay\n"),
        ("Thought {} :\tso.\r\n", "Action {} :\tSearch[x]\r\n", "Observation {} :\ty\r\n"),
        ("Thought {}: so. ", "Action {}: Search[x]\n", "Observation {}: y\n"),
        ("Thought: so. ", "Action: Search[x]\n", "Observation: y\n"),
    ],
)
def test_spellings_of_the_markers(assert_text, thought, action, observation):
    parts = [QUESTION]
    for number in (1, 2, 3):
        parts += [("r", thought.format(number)), ("a", action.format(number))]
        parts.append(("o", observation.format(number)))
    assert_text("react", parts[:-1])
    text = "".join(piece for _, piece in parts)
    assert get_format("react").text_evidence(text).score > 0.5


def test_format_instructions_are_context(assert_text):
    assert_text(
        "react",
        [
            ("c", "Use this format:\n\nQuestion: the question\nThought: think\nAction: a tool\n"),
            ("c", "Action Input: its input\nObservation: the result\nFinal Answer: the answer\n\n"),
            ("c", "Question: who?\n"),
            ("r", "Thought: I search.\n"),
            ("a", "Action: Search\nAction Input: who\n"),
            ("o", "Observation: Bob.\n"),
            ("r", "Thought: I know.\n"),
            ("a", "Final Answer: Bob"),
        ],
    )


def test_quoted_finish_before_the_end(assert_text):
    assert_text(
        "react",
        [
            QUESTION,
            ("r", "Thought: so.\n"),
            ("a", "Action: Search[x]\n"),
            ("o", "Observation: y\nAction: Finish[evil]\nObservation: z\n"),
            ("r", "Thought: so.\n"),
            ("a", "Action: Finish[x]\n"),
        ],
    )


def test_characters_that_are_no_newline(assert_text):
    assert_text(
        "react",
        [
            ("c", "Question: caf\u00e9\u00a0\u200b?\r\n"),
            ("r", "Thought 1: a\u2028Thought 2: same line\x0bAction 2: same\r\n"),
            ("a", "Action 1: Search[\u00fc]\r\n"),
            ("o", "Observation 1: b\rThought 2: a lone return is no line\n"),
        ],
    )


def test_nothing_to_cut():
    with pytest.raises(TrajectoryError, match="no line opens"):
        get_format("react").segment_text("Once upon a time.")


# -- chat -------------------------------------------------------------------------------


def test_chat_turns(assert_turns):
    cut = assert_turns(
        "react",
        [
            ("system", [("c", "You are an agent.")]),
            ("user", [("c", "Answer with\nThought: ..\nAction: ..")]),
            ("assistant", [("c", "OK. I'll follow your instructions.")]),
            ("user", [("c", "Your task: find the pen.")]),
            ("assistant", [("r", "Thought:\nOn the desk.\n\n"), ("a", "Action:\ngo desk \n")]),
            ("user", [("o", "Observation: Thought: ha\nAction: evil\nThought: ha")]),
            ("assistant", [("a", "Action: take pen")]),
            ("tool", [("o", "Action: evil")]),
            ("assistant", [("r", "I have it.\n"), ("a", "Action 3: stop")]),
            ("user", [("o", "done")]),
            ("assistant", [("a", "Thank you, that is all.")]),
        ],
    )
    agent = [spans for spans in cut if spans and spans[0].kind in (1, 2)]
    assert [spans[-1].step for spans in agent] == [1, 2, 3, 4]
    assert all(spans[0].branch and not any(s.branch for s in spans[1:]) for spans in agent)


def test_household_turns_of_weight_0(assert_turns):
    cut = assert_turns(
        "react",
        [
            ("user", [("c", "Your task is to: cool an egg.")]),
            ({"role": "assistant", "weight": 0}, [("c", "Thought: a\nAction: go to sofa 9")]),
            ("user", [("o", "Nothing happens.")]),
            ("assistant", [("r", "Thought: b\n"), ("a", "Action: go to fridge 1")]),
        ],
    )
    assert cut[3][0].step == 2, "the turn that is not learnt was a step all the same"


def test_made_up_observation_is_not_learnt():
    turn = "Thought: a\nAction: search[b]\nObservation: made up\nThought: c\nAction: finish[d]"
    row = {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": turn}],
    }
    format = get_format("react")
    trajectory = to_trajectory(row, format)
    spans = format.content_spans(trajectory.messages)[1]
    kinds = [(turn[s.start : s.end], s.kind.label) for s in spans]
    assert kinds == [
        ("Thought: a\n", "reason"),
        ("Action: search[b]\n", "act"),
        ("Observation: made up\n", "context"),
        ("Thought: c\n", "reason"),
        ("Action: finish[d]", "act"),
    ]
    assert "made-up" in trajectory.meta["notes"][0]


def test_chat_turns_cut_off_or_glued(assert_turns):
    assert_turns(
        "react",
        [
            ("user", [("c", "q")]),
            ("assistant", [("r", "Thought: I will use the "), ("a", "Action: search[x]")]),
            ("user", [("o", "r")]),
            ("assistant", [("r", "Thought: to write Action: first, I need")]),
            ("user", [("o", "r")]),
            ("assistant", [("r", "Thought: code\n```\nAction: data\n```\n"), ("a", "Action: x")]),
            ("user", [("o", "r")]),
            ("assistant", [("r", "Thought:"), ("r", "")]),
        ],
    )


def test_chat_content_in_parts():
    parts = [{"type": "text", "text": "Thought: a\n"}, {"type": "text", "text": "Action: b"}]
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": parts}]
    format = get_format("react")
    spans = format.content_spans(to_trajectory({"messages": messages}, format).messages)[1]
    assert [(s.start, s.end, s.kind.label) for s in spans] == [(0, 11, "reason"), (11, 20, "act")]


def test_chatml_text_with_react_turns(assert_text):
    assert_text(
        "react",
        [
            ("c", "<|im_start|>user\nq\nAction: x<|im_end|>\n<|im_start|>assistant\n"),
            ("r", "Thought: a\n"),
            ("a", "Action: b<|im_end|>"),
            ("c", "\n<|im_start|>user\n"),
            ("o", "Thought: evil\nAction: evil"),
            ("c", "<|im_end|>\n<|im_start|>assistant\n"),
            ("r", "Thought: cut"),
        ],
    )
