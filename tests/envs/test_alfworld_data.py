"""Game folders in ALFWorld's layout, with the `move` grammar and the older `put` one.

ALFWorld's own games are a download; these are generated games written as its folders are.
"""

import importlib.util
import json

import pytest

from sad_components.envs import NoSuchTask, make_environment
from sad_components.envs.household import sample_game
from sad_components.envs.household.pddl import game_data
from sad_components.evaluation.policies import ExpertPolicy, RandomPolicy
from sad_components.evaluation.pool import EnvironmentPool
from sad_components.evaluation.rollout import Job, rollout

INSTALLED = all(importlib.util.find_spec(name) for name in ("alfworld", "textworld"))
needs_engine = pytest.mark.skipif(not INSTALLED, reason="household extra not installed")


def write_game(folder, game, put=False, solvable=True):
    """One game in ALFWorld's layout; with ``put`` in the words of its first versions."""
    data = {**game_data(game), "solvable": solvable, "walkthrough": []}
    if put:
        grammar = data["grammar"].replace("move {o} to {r}", "put {o} in/on {r}")
        grammar = grammar.replace(
            "You move the {o.name} to the {r.name}.", "You put the {o.name} in/on the {r.name}."
        )
        data["grammar"] = grammar.replace("You arrive at {r.name}. ", "")
    trial = folder / f"{game.task_type}-{game.target}-None-{game.goal}-1" / f"trial_{game.id}"
    trial.mkdir(parents=True)
    (trial / "game.tw-pddl").write_text(json.dumps(data))
    (trial / "traj_data.json").write_text(json.dumps({"task_type": game.task_type}))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("alfworld")
    for seed in range(6):
        write_game(root / "json_2.1.1" / "valid_seen", sample_game(seed, "heldout"))
        write_game(root / "json_2.1.1" / "valid_unseen", sample_game(seed, "heldout"), put=True)
    write_game(root / "json_2.1.1" / "valid_seen", sample_game(7, "heldout"), solvable=False)
    return root


@needs_engine
@pytest.mark.parametrize(("split", "verb"), [("valid_seen", "move"), ("valid_unseen", "put")])
def test_expert_wins_in_both_grammars(data, split, verb):
    with EnvironmentPool("alfworld", {"data": str(data), "split": split}, 3) as pool:
        jobs = [Job(task) for task in pool.env.tasks()]
        episodes = list(rollout(ExpertPolicy(), pool, jobs))
    assert len(episodes) == 6
    assert all(e.won and not e.invalid_actions for e in episodes), [e.why for e in episodes]
    assert len({e.trajectory.meta["task_type"] for e in episodes}) == 6
    actions = {a.split()[0] for e in episodes for a in e.actions}
    assert verb in actions
    assert {"move", "put"} - {verb} not in actions
    first = episodes[0].trajectory.messages[0].text
    assert ("put O in/on R" in first) is (verb == "put")
    arrived = any("You arrive at" in m.text for e in episodes for m in e.trajectory.messages)
    assert arrived is (verb == "move")


@needs_engine
def test_either_wording_is_understood(data):
    env = make_environment("alfworld", data=str(data), split="valid_unseen")
    task = next(t for t in env.tasks() if t.startswith("pick_and_place"))
    env.reset(task)
    done = False
    while not done:
        action = env.expert_turn().text.split("Action: ")[1]
        action = action.replace("put ", "move ").replace(" in/on ", " to ")
        _, reward, done, info = env.step(action)
        assert info["valid"]
    assert reward == 1.0


@needs_engine
def test_the_expert_takes_over(data):
    env = make_environment("alfworld", data=str(data), split="valid_unseen")
    task = env.tasks(1)[0]
    actions = [a for a in env.restore(task, []) and env.admissible() if a.startswith("go to")][:2]
    env.restore(task, [*actions, "dance"])
    done = False
    while not done:
        _, reward, done, _ = env.step(env.expert_turn().text.split("Action: ")[1])
    assert reward == 1.0


@needs_engine
def test_the_memoised_parser_changes_no_text(data):
    """The same games as the fast engine tells them."""
    env = make_environment("alfworld", data=str(data), split="valid_seen", style="dense")
    fast = make_environment("household", split="heldout", style="dense")
    tasks = {t.rsplit("trial_", 1)[1]: t for t in env.tasks()}
    for game, task in list(tasks.items())[:2]:
        assert fast.reset(game) == env.reset(task)
        for _ in range(6):
            action = fast.expert_turn().text.split("Action: ")[1]
            assert fast.admissible() == env.admissible()
            ours, theirs = fast.step(action), env.step(action)
            assert ours == theirs
            if ours.done:
                break


@needs_engine
def test_in_worker_processes(data):
    options = {"data": str(data), "split": "valid_seen", "max_steps": 2}
    texts = []
    for workers in (0, 2):
        with EnvironmentPool("alfworld", options, 2, workers) as pool:
            episodes = rollout(RandomPolicy(), pool, [Job(t) for t in pool.env.tasks(3)])
            texts.append([[m.text for m in e.trajectory.messages] for e in episodes])
    assert texts[0] == texts[1]


@needs_engine
def test_folder_from_the_environment(data, monkeypatch):
    monkeypatch.setenv("ALFWORLD_DATA", str(data))
    assert len(make_environment("alfworld", split="valid_seen").tasks()) == 6


@needs_engine
def test_what_cannot_be(data, tmp_path, monkeypatch):
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    with pytest.raises(ValueError, match="ALFWORLD_DATA"):
        make_environment("alfworld")
    with pytest.raises(ValueError, match="splits are train, valid_seen, valid_unseen; got 'test'"):
        make_environment("alfworld", data=str(data), split="test")
    with pytest.raises(ValueError, match="no folder train"):
        make_environment("alfworld", data=str(data), split="train")
    (tmp_path / "valid_seen").mkdir()
    with pytest.raises(ValueError, match="no solvable"):
        make_environment("alfworld", data=str(tmp_path), split="valid_seen")
    env = make_environment("alfworld", data=str(data), split="valid_seen")
    with pytest.raises(NoSuchTask, match="alfworld has no task"):
        env.reset("elsewhere")
