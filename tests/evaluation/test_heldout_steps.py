"""Step accuracy, CoT match and first divergent step of policies whose figures are known."""

import pytest

from sad_components.envs.household import shipped
from sad_components.evaluation.heldout_steps import heldout_steps, summarize_steps, token_f1
from sad_components.evaluation.policies import ExpertPolicy, Turn, model_policy
from sad_components.evaluation.turns import TurnReader
from sad_components.trajectory import Message, Trajectory, read_jsonl

READER = TurnReader("react")


class Answers:
    """A policy that says what a function makes of the history."""

    name, needs = "answers", frozenset()

    def __init__(self, say):
        self._say = say

    def act(self, episodes):
        return [Turn(Message("assistant", self._say(view))) for view in episodes]


def turn(thought, action, acceptable=None, weight=None):
    text = READER.write(thought, action)
    return Message("assistant", text, acceptable=acceptable, weight=weight)


@pytest.fixture
def trajectories():
    return [
        Trajectory(
            [
                Message("user", "Do it."),
                turn("a b c", "go to x 1", ["go to x 1", "go to x 2"]),
                Message("user", "Nothing happens."),
                turn("wrong", "jump", weight=0),
                Message("user", "Nothing happens."),
                turn(None, "take y", ["take y"]),
            ],
            id="one",
            format="react",
        ),
        Trajectory([Message("user", "Do that."), turn("d", "open z")], id="two", format="react"),
    ]


def test_figures(trajectories):
    def say(view):
        if view.task == "two":
            return "Thought: d\nAction: OPEN  z"  # case and blanks do not count
        return "Thought: a b\nAction: go to x 2"

    got = summarize_steps(heldout_steps(Answers(say), trajectories))
    assert got["steps"] == 3  # the wrong turn is none
    assert got["step_accuracy"] == pytest.approx(2 / 3)
    assert got["cot_exact"] == pytest.approx(1 / 3)
    assert got["cot_f1"] == pytest.approx((0.8 + 0.0 + 1.0) / 3)
    assert (got["trajectories"], got["never_diverged"]) == (2, 0.5)
    assert got["first_divergent_step"] == 3
    assert got["parse_failures"] == 0


def test_the_history_is_the_teachers(trajectories):
    seen = []

    def say(view):
        seen.append((view.task, [m.text for m in view.messages]))
        return "Action: x"

    heldout_steps(Answers(say), trajectories, batch_size=1)
    texts = [m.text for m in trajectories[0].messages]
    assert seen == [("one", texts[:1]), ("one", texts[:5]), ("two", ["Do that."])]


def test_silence_is_a_parse_failure(trajectories):
    got = summarize_steps(heldout_steps(Answers(lambda view: "hm"), trajectories))
    assert (got["step_accuracy"], got["parse_failures"]) == (0, 3)


def test_the_shipped_expert_agrees_with_itself():
    episodes = list(read_jsonl(shipped("heldout")))[:10]
    texts = {}
    for episode in episodes:
        for index, message in enumerate(episode.messages):
            texts[episode.id, index] = message.text
    policy = Answers(lambda view: texts[view.task, len(view.messages)])
    got = summarize_steps(heldout_steps(policy, episodes, batch_size=3))
    assert (got["step_accuracy"], got["cot_exact"], got["never_diverged"]) == (1, 1, 1)
    assert got["first_divergent_step"] is None


def test_a_model_says_the_same_in_any_batch(tiny_model, tokenizer):
    episodes = list(read_jsonl(shipped("heldout")))[:4]
    policy = model_policy(tiny_model, tokenizer, {"style": "plain"}, max_new_tokens=8)
    written = []
    act = policy.act
    for batch_size in (1, 4):
        said = {}

        def note(views, said=said):
            turns = act(views)
            for view, t in zip(views, turns):
                said[view.task, len(view.messages)] = t.message.text
            return turns

        policy.act = note
        heldout_steps(policy, episodes, batch_size)
        written.append(said)
    assert written[0] == written[1]
    assert len(written[0]) > 20


def test_a_policy_that_needs_an_environment(trajectories):
    with pytest.raises(ValueError, match="asks the environment for expert_turn"):
        heldout_steps(ExpertPolicy(), trajectories)


@pytest.mark.parametrize(
    ("text", "reference", "wanted"),
    [("", "", 1), ("a", "", 0), ("a a b", "a c", 0.4), ("x y", "y x", 1), ("A", "a", 0)],
)
def test_token_f1(text, reference, wanted):
    assert token_f1(text, reference) == pytest.approx(wanted)
