"""The games in the real engine."""

import functools
import importlib.util
import random
import subprocess
import sys

import pytest

from sad_components.envs.household import (
    NOTHING_HAPPENS,
    Expert,
    HouseholdEnv,
    play_episode,
    sample_game,
    shipped,
)
from sad_components.envs.household.pddl import game_data
from sad_components.trajectory import read_jsonl

INSTALLED = all(importlib.util.find_spec(name) for name in ("alfworld", "textworld"))
needs_engine = pytest.mark.skipif(not INSTALLED, reason="household extra not installed")


@functools.cache
def env():
    return HouseholdEnv()


def expert_actions(game, seed=0):
    """Actions, observations and infos of an expert episode."""
    expert = Expert(env().reset(game), random.Random(seed))
    log, done = [], False
    while not done:
        decision = expert.decide()
        assert set(decision.acceptable) <= set(env().admissible())
        observation, _, done, info = env().step(decision.action)
        expert.observe(observation)
        log.append((decision.action, observation, info))
    return log


@needs_engine
def test_expert_wins_every_task_type_within_the_limit():
    logs = [expert_actions(sample_game(seed, "heldout")) for seed in range(1002, 1008)]
    assert all(log[-1][2]["won"] for log in logs)
    assert 5 <= sum(map(len, logs)) / len(logs) <= 12


@needs_engine
@pytest.mark.parametrize("seed", [1, 5])
def test_same_texts_as_alfworlds_own_stack(seed):
    import textworld
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from textworld.envs.pddl import PddlEnv

    game = sample_game(seed)
    infos = textworld.EnvInfos(won=True, admissible_commands=True)
    reference = AlfredDemangler(PddlEnv(infos))
    argv = sys.argv
    reference.load(game_data(game))
    sys.argv = argv
    state = reference.reset()
    first = env().reset(game)
    assert first.split("\n") == [line for line in state.feedback.split("\n") if line][1:]
    rng = random.Random(seed)
    script = [action for action, _, _ in expert_actions(game)]
    env().reset(game)
    for action in script:
        assert env().admissible() == state["admissible_commands"]
        for command in (rng.choice(["examine", "look", "dance"]), action):
            observation, _, done, info = env().step(command)
            state, _, reference_done = reference.step(command)
            assert observation == state.feedback
            assert (done, info["won"]) == (reference_done, state["won"])


@needs_engine
def test_taking_over_after_random_actions_still_wins():
    for seed in range(4):
        first, rng, history = env().reset(seed), random.Random(seed), []
        for _ in range(8):
            action = rng.choice(env().admissible())
            observation, _, done, _ = env().step(action)
            history.append((action, observation))
            assert not done, "eight random actions happen to win: choose another seed"
        expert = Expert(first, rng, history)
        while not done:
            observation, reward, done, _ = env().step(expert.decide().action)
            expert.observe(observation)
        assert reward == 1.0


@needs_engine
def test_restore_replays():
    game = sample_game(3, "heldout")
    log = expert_actions(game)
    half = len(log) // 2
    assert env().restore(game, [a for a, _, _ in log[:half]]) == log[half - 1][1]
    for action, observation, info in log[half:]:
        assert env().step(action)[::3] == (observation, info)


@needs_engine
def test_invalid_actions_change_nothing_but_count():
    first = env().reset(0)
    before = env().admissible()
    observation, reward, done, info = env().step("put mug 1 in/on shelf 1")
    assert (observation, reward, done) == (NOTHING_HAPPENS, 0.0, False)
    assert info == {"won": False, "valid": False, "steps": 1, "truncated": False}
    assert env().admissible() == before
    assert env().reset(0) == first


@needs_engine
def test_step_limit_ends_the_episode():
    short = HouseholdEnv(max_steps=2)
    short.reset(0)
    assert short.step("look")[2] is False
    _, reward, done, info = short.step("look")
    assert (reward, done, info["truncated"]) == (0.0, True, True)
    with pytest.raises(RuntimeError, match="call reset first"):
        short.step("look")


@needs_engine
def test_a_lost_episode_says_so():
    trajectory = play_episode(HouseholdEnv(max_steps=2), sample_game(5))
    assert trajectory.success is False
    assert trajectory.score == 0.0


@needs_engine
def test_sys_argv_is_kept():
    before = list(sys.argv)
    HouseholdEnv().reset(11)
    assert sys.argv == before


@needs_engine
def test_shipped_episodes_can_be_made_again():
    expected = next(iter(read_jsonl(shipped("heldout"))))
    game = sample_game(expected.meta["seed"], "heldout")
    assert play_episode(env(), game).to_dict() == expected.to_dict()


@needs_engine
def test_sparse_episodes_with_wrong_turns_are_won_and_mark_them():
    game = sample_game(2, "heldout")
    trajectory = play_episode(env(), game, style="sparse", wrong_turn_share=1.0)
    agent = [m for m in trajectory.messages if m.role == "assistant"]
    assert trajectory.success
    assert any(m.weight == 0 for m in agent)
    assert any(m.text.startswith("Action:") for m in agent if m.is_learnt)


def test_bad_settings_are_errors():
    with pytest.raises(ValueError, match="max_steps is at least 1; got 0"):
        HouseholdEnv(max_steps=0)
    with pytest.raises(ValueError, match=r"probability in \[0, 1\]; got 2"):
        play_episode(None, sample_game(0), wrong_turn_share=2)


def test_without_the_extra_only_playing_fails():
    script = (
        "import sys\n"
        "for name in ('alfworld', 'textworld', 'fast_downward'): sys.modules[name] = None\n"
        "from sad_components.envs.household import HouseholdEnv, sample_game, shipped\n"
        "sample_game(0); assert shipped('train').exists()\n"
        "try: HouseholdEnv()\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pip install 'torchtune-sad[household]'" in done.stdout, done.stderr
