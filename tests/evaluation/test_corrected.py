"""A policy and its expert in one episode: who plays when, and what of it is learnt."""

import pytest

from sad_components.data.transform import SpanTokenizer
from sad_components.evaluation.policies import (
    CorrectedPolicy,
    ExpertPolicy,
    RandomPolicy,
    ScriptedPolicy,
    Turn,
    model_policy,
)
from sad_components.evaluation.pool import EnvironmentPool
from sad_components.evaluation.rollout import Job, rollout
from sad_components.spans import AGENT_KINDS
from sad_components.trajectory import Trajectory

TASKS = [str(n) for n in range(12)]
LOOKER = ScriptedPolicy(lambda view: "look", name="looker")


def play(policy, tasks=TASKS, slots=4, seed=0, **options):
    with EnvironmentPool("rooms.Rooms", {"tasks": list(tasks), **options}, slots) as pool:
        return list(rollout(policy, pool, [Job(task) for task in tasks], seed))


def turns(episode):
    return [m for m in episode.trajectory.messages if m.role == "assistant"]


def said(episodes):
    return [[(m.text, m.weight) for m in turns(e)] for e in episodes]


def test_a_correction_every_time_is_the_experts_episode():
    corrected = play(CorrectedPolicy(LOOKER, share=1.0))
    assert all(e.won for e in corrected)
    for mine, experts in zip(corrected, play(ExpertPolicy("corrected"))):
        assert mine.trajectory.to_dict() == experts.trajectory.to_dict()


def test_without_corrections_only_what_both_would_do_is_learnt():
    for episode in play(CorrectedPolicy(LOOKER, share=0.0)):
        needed = int(episode.job.task) % 3
        assert not episode.won
        assert [m.weight for m in turns(episode)] == [None] * needed + [0] * (6 - needed)
        # where both look, it is the expert's turn that is played: with its thought
        assert [m.text.startswith("Thought") for m in turns(episode)[: needed + 1]] == [
            *[True] * needed,
            False,
        ]


def test_half_of_the_differences_are_corrected_and_the_expert_goes_on_from_there():
    tasks = [str(n) for n in range(0, 900, 3)]  # those of which the expert opens the door at once
    episodes = play(CorrectedPolicy(LOOKER), tasks, slots=50, max_steps=40)
    assert all(e.won for e in episodes)
    assert all([m.weight for m in turns(e)][-1] is None for e in episodes)
    strays = [sum(m.weight == 0 for m in turns(e)) for e in episodes]
    assert 0.75 < sum(strays) / len(strays) < 1.25  # one on average, at a share of a half
    assert max(strays) > 2


def test_turns_do_not_depend_on_the_company():
    policy = CorrectedPolicy(RandomPolicy())
    first = [e.trajectory.to_dict() for e in play(policy, slots=1)]
    assert [e.trajectory.to_dict() for e in play(policy, slots=7)] == first
    assert [e.trajectory.to_dict() for e in play(policy, seed=1)] != first


def test_what_the_policy_played_is_context_and_what_the_expert_played_is_learnt(tokenizer):
    transform = SpanTokenizer(tokenizer, style="plain")
    episode = play(CorrectedPolicy(LOOKER, share=0.0), tasks=["1"])[0]
    rendered = transform.render(Trajectory.from_dict(episode.trajectory.to_dict()))[0]
    learnt = [rendered.text[s.start : s.end] for s in rendered.spans if s.kind in AGENT_KINDS]
    assert "".join(learnt).replace("\n", " ").strip() == "Thought: I look first. Action: look"
    assert rendered.text.count("Action: look") == 6


def test_a_model_is_corrected_in_any_company(tiny_model, tokenizer):
    model = {"style": "plain"}
    policy = CorrectedPolicy(model_policy(tiny_model, tokenizer, model, max_new_tokens=12))
    alone = play(policy, tasks=TASKS[:5], slots=1)
    together = play(policy, tasks=TASKS[:5], slots=5)
    assert said(alone) == said(together)
    assert all(e.tokens >= 12 * e.steps for e in together)  # its turns cost, played or not


def test_parts_may_be_configs():
    component = "sad_components.evaluation.policies"
    policy = CorrectedPolicy(
        {"_component_": f"{component}.RandomPolicy"},
        {"_component_": f"{component}.ExpertPolicy"},
        name="both",
    )
    assert policy.needs == {"admissible", "expert_turn"}
    assert play(policy)[0].trajectory.teacher == "both"


def test_a_failure_of_either_ends_the_episode():
    class Silent:
        name, needs = "silent", frozenset()

        def act(self, episodes):
            return [Turn(failure="no answer") for _ in episodes]

    for policy in (CorrectedPolicy(Silent(), share=1.0), CorrectedPolicy(LOOKER, Silent())):
        assert {(e.failure, e.why) for e in play(policy)} == {("policy", "no answer")}


def test_a_share_is_a_probability():
    with pytest.raises(ValueError, match=r"a probability in \[0, 1\]; got 1.5"):
        CorrectedPolicy(LOOKER, share=1.5)
