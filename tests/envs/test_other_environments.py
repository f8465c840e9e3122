"""The protocol, the registry, gym-style environments, TextWorld game files, ScienceWorld."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sad_components.envs import ENVIRONMENTS, Environment, EpisodeOver, NoSuchTask, make_environment

DOCS = Path(__file__).resolve().parents[2] / "docs" / "environments.md"
needs_textworld = pytest.mark.skipif(
    not importlib.util.find_spec("textworld"), reason="household extra not installed"
)
needs_scienceworld = pytest.mark.skipif(
    not importlib.util.find_spec("scienceworld") or not shutil.which("java"),
    reason="scienceworld extra not installed",
)


def expert_plays(env, task):
    """Rewards and last info of the environment's own expert."""
    env.reset(task)
    rewards, done, info = [], False, {}
    while not done:
        turn = env.expert_turn()
        assert turn is not None, rewards
        _, reward, done, info = env.step(turn.text.split("Action: ")[1])
        rewards.append(reward)
    return rewards, info


# -- protocol and registry -----------------------------------------------------------------------


def test_names_lead_to_classes():
    for name in ("hotpotqa", "webshop"):
        env = make_environment(name)
        assert isinstance(env, Environment)
        assert env.name == name
        assert env.first_message("You see.").text == f"{env.instructions}\n\nYou see."


@pytest.mark.parametrize("path", ENVIRONMENTS.values())
def test_every_name_is_a_class_that_can_be_imported(path):
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert issubclass(found, Environment)
    assert found.name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("houshold", {}, "no environment 'houshold'; there are household, alfworld"),
        ("nowhere.Room", {}, "there is no module 'nowhere'"),
        ("rooms.Nobody", {}, "rooms has no 'Nobody'"),
        ("hotpotqa", {"sources": 1}, r"cannot be made of \{'sources': 1\}"),
        ("pathlib.Path", {}, "without reset and step"),
    ],
)
def test_names_that_lead_nowhere(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_environment(name, **options)


def test_a_module_that_lacks_a_package_says_which(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import not_installed_anywhere\nclass Room: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        make_environment("needs_more.Room")


def test_reset_by_seed_and_by_task():
    env = make_environment("rooms.Rooms", tasks=5)
    assert env.reset(seed=3) == env.reset("3")
    assert env.reset(seed=8) == env.reset("3")


def test_episode_life():
    env = make_environment("rooms.Rooms", tasks=5, max_steps=2)
    with pytest.raises(EpisodeOver, match="call reset first"):
        env.step("look")
    env.reset("2")
    assert env.step("look").info == {"won": False, "valid": True, "steps": 1, "truncated": False}
    last = env.step("look")
    assert (last.done, last.info["truncated"]) == (True, True)
    with pytest.raises(EpisodeOver):
        env.step("look")
    with pytest.raises(NoSuchTask, match="rooms has no task 'x'; it has 5: 0, 1, 2"):
        env.reset("x")
    with pytest.raises(EpisodeOver):
        env.step("look")  # a failed reset leaves no episode


def test_restore_is_replay():
    env = make_environment("rooms.Rooms", tasks=5)
    assert env.restore("2", ["look", "look"]) == "You see doors."
    result = env.step("open door 2")
    assert (result.reward, result.info["steps"]) == (1.0, 3)
    with pytest.raises(EpisodeOver):
        env.restore("0", ["open door 0", "look"])


def test_a_step_limit_below_1():
    with pytest.raises(ValueError, match="max_steps is at least 1; got 0"):
        make_environment("rooms.Rooms", max_steps=0)


# -- gym -------------------------------------------------------------------------------------------


def test_a_gym_style_class_by_dotted_path():
    env = make_environment("gym_rooms.GymRoom", hints=True, max_steps=3)
    assert env.instructions == "Say the number."
    assert env.tasks(3, seed=4) == ["4", "5", "6"]
    assert env.reset("7") == "Number 2."
    assert env.step("1")[1:3] == (0.0, False)
    result = env.step("2")
    assert (result.reward, result.done, result.info["won"]) == (1.0, True, True)
    assert env.admissible() is None
    assert env.expert_turn() is None
    assert make_environment("gym_rooms.GymRoom", hints=False).reset("7") == "A number."


def test_old_gyms_four_values_and_no_seed():
    from sad_components.envs.gym_adapter import GymEnvironment

    class Old:
        def reset(self):
            return "Go."

        def step(self, action):
            return "Done.", 0.0, True, {"won": action == "yes"}

        def admissible(self):
            return ["yes", "no"]

    env = GymEnvironment(Old(), instructions="Answer.")
    assert env.reset("0") == "Go."
    assert env.admissible() == ["yes", "no"]
    assert env.step("yes").info["won"]
    env.reset("0")
    assert not env.step("no").info["won"]


def test_the_documented_example_runs(tmp_path):
    """Each python block of docs/environments.md, in one process and in order."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 2
    module, *rest = blocks
    (tmp_path / "my_rooms.py").write_text(module)
    (tmp_path / "use.py").write_text("\n".join(rest))
    done = subprocess.run([sys.executable, "use.py"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "won 2 of 3"


def test_docs_name_every_environment():
    text = DOCS.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in ENVIRONMENTS)


# -- engines ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def game_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("games")
    make = Path(sys.executable).with_name("tw-make")
    command = [make, "custom", "--world-size", "2", "--nb-objects", "3", "--quest-length", "2"]
    command += ["--seed", "4", "--output", folder / "small.z8"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@needs_textworld
def test_a_textworld_game_file(game_folder):
    env = make_environment("textworld", games=str(game_folder))
    assert env.tasks() == ["small.z8"]
    first = env.reset("small.z8")
    assert "\n>" not in first
    result = env.step("dance wildly")
    assert not result.info["valid"]
    rewards, info = expert_plays(env, "small.z8")
    assert sum(rewards) == pytest.approx(1.0)
    assert info["won"]
    actions = env.reset("small.z8") and env.admissible()[:1]
    last = env.restore("small.z8", actions)
    assert last == make_environment("textworld", games=[game_folder / "small.z8"]).restore(
        "small.z8", actions
    )
    env.close()


@needs_textworld
def test_a_folder_without_games(tmp_path):
    with pytest.raises(ValueError, match="got 0 files, 0 names"):
        make_environment("textworld", games=str(tmp_path))


@needs_scienceworld
def test_scienceworld():
    env = make_environment("scienceworld", task_names=["find-living-thing"])
    rewards, info = expert_plays(env, env.tasks(1)[0])
    assert sum(rewards) == pytest.approx(1.0)
    assert info["won"]
    env.reset(env.tasks(1)[0])
    assert not env.step("fly to the moon").info["valid"]
    env.close()


@pytest.mark.skipif(
    bool(importlib.util.find_spec("scienceworld")), reason="scienceworld extra is installed"
)
def test_without_the_extra_the_message_says_what_to_install():
    with pytest.raises(ImportError, match=r"pip install 'torchtune-sad\[scienceworld\]'"):
        make_environment("scienceworld")
