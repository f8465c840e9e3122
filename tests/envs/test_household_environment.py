"""The generated games behind the protocol: known scores, the expert's records, two at a time."""

import importlib.util
import random
import re

import pytest

from sad_components.envs import NoSuchTask, make_environment
from sad_components.envs.household import TASK_TYPES, play_episode, sample_game
from sad_components.envs.household.engine import HouseholdEnv
from sad_components.envs.household.thoughts import _NEXT_SEARCH, RECOVERIES
from sad_components.evaluation.policies import (
    CorrectedPolicy,
    ExpertPolicy,
    RandomPolicy,
    ScriptedPolicy,
)
from sad_components.evaluation.pool import EnvironmentPool
from sad_components.evaluation.rollout import Job, rollout

INSTALLED = all(importlib.util.find_spec(name) for name in ("alfworld", "textworld"))
needs_engine = pytest.mark.skipif(not INSTALLED, reason="household extra not installed")


def play(policy, slots=3, count=6, **options):
    with EnvironmentPool("household", options, slots) as pool:
        return list(rollout(policy, pool, [Job(t) for t in pool.env.tasks(count)]))


@needs_engine
def test_expert_wins_and_random_gets_its_own():
    expert = play(ExpertPolicy())
    assert all(e.won for e in expert)
    assert [e.trajectory.meta["task_type"] for e in expert] == list(TASK_TYPES)
    chance = play(RandomPolicy(), count=3, max_steps=8)
    assert not any(e.won for e in chance)
    assert all(e.invalid_actions == 0 for e in chance)
    # a script with a known score: what the expert did in every game but the first
    script = {e.job.task: e.actions for e in expert[1:]}
    replayed = play(ScriptedPolicy(script), max_steps=20)
    assert [e.won for e in replayed] == [False, True, True, True, True, True]
    assert replayed[0].parse_failures == 20


@needs_engine
@pytest.mark.parametrize("style", ["dense", "checking", "sparse"])
def test_records_are_those_of_the_expert_alone(style):
    options = {"style": style, "wrong_turn_share": 1.0}
    episodes = play(ExpertPolicy("household-expert"), slots=4, count=4, **options)
    engine = HouseholdEnv()
    for seed, episode in enumerate(episodes):
        alone = play_episode(engine, sample_game(seed, "heldout"), style, 1.0)
        assert episode.trajectory.to_dict() == alone.to_dict()


@needs_engine
def test_the_expert_that_looks_round_the_room_wins_too():
    episodes = play(ExpertPolicy("household-expert"), slots=4, count=6, search="listed")
    assert all(e.won for e in episodes)
    listing = episodes[0].trajectory.messages[0].text.split("you see ")[1]
    first = re.search(r"a ([a-z]+ \d+)", listing)[1]
    assert episodes[0].actions[0] == f"go to {first}"


@needs_engine
def test_the_expert_takes_over_a_strangers_episode():
    env = make_environment("household")
    rng = random.Random(0)
    env.reset("heldout-00003")
    for _ in range(6):
        env.step(rng.choice([*env.admissible(), "dance"]))
    done = False
    while not done:
        _, reward, done, _ = env.step(env.expert_turn().text.split("Action: ")[1])
    assert reward == 1.0


@needs_engine
def test_the_expert_answers_to_what_another_did_instead():
    env = make_environment("household", style="checking", renamed_share=1.0, split="train")
    said = env.reset("train-00007")
    unseen = [f"go to {place}" for place in re.findall(r"\ba ([a-z]+ \d)", said)]
    while not (seen := re.search(r"(?:On the|The) ([a-z]+ \d).* you see", said)):
        own = env.expert_turn().text.split("Action: ")[1]
        assert not _slips(env.expert_turn().text)
        said = env.step(own).observation
        unseen = [action for action in unseen if action != own]
    after = []
    for action in ("go to shelf 77", unseen[0], f"go to {seen[1]}"):
        env.expert_turn()
        env.step(action)
        after.append(_slips(env.expert_turn().text))
    assert after == [["invalid"], [], ["detour"]]


def _slips(text):
    return [kind for kind, words in RECOVERIES.items() if any(w in text for w in words)]


@needs_engine
def test_a_second_thing_is_not_announced_before_the_first_is_there():
    env = make_environment("household", split="train")
    task = next(t for t in env.tasks(6) if env.reset(t) and "two" in env.task_sentence)
    env.reset(task)
    while not (action := env.expert_turn().text.split("Action: ")[1]).startswith("move "):
        env.step(action)
    env.step(next(a for a in env.admissible() if a.startswith("go to ")))
    thought = env.expert_turn().text
    assert not any(words.split("{")[0] in thought for words in _NEXT_SEARCH)


@needs_engine
def test_the_expert_brings_a_stumbling_policy_through():
    policy = CorrectedPolicy(RandomPolicy())
    episodes = play(policy, split="train", renamed_share=0.5, style="checking", max_steps=80)
    assert all(e.won for e in episodes)
    weights = [m.weight for e in episodes for m in e.trajectory.messages if m.role == "assistant"]
    assert weights.count(0) > 10


@needs_engine
def test_tasks():
    env = make_environment("household", split="train", task_types=list(TASK_TYPES[1:3]))
    assert env.tasks(4, seed=1) == ["train-00001", "train-00002", "train-00007", "train-00008"]
    with pytest.raises(NoSuchTask, match="say how many"):
        env.tasks()
    with pytest.raises(NoSuchTask, match="'train-n' or 'heldout-n'; got 'test-1'"):
        env.reset("test-1")
    env.reset("heldout-00002")
    assert env.task_sentence == "clean some fork and put it in countertop"
    assert env.describe()["task_type"] == TASK_TYPES[2]


@needs_engine
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "one of train, heldout; got 'test'"),
        ({"style": "loud"}, "one of dense, checking, sparse; got 'loud'"),
        ({"search": "random"}, "one of likely, listed; got 'random'"),
        ({"task_types": ["cook"]}, r"non-empty list of .*; got \['cook'\]"),
        ({"task_types": []}, "non-empty list"),
        ({"wrong_turn_share": 2}, r"probability in \[0, 1\]; got 2"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        make_environment("household", **options)
