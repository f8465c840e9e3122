"""Objects under each other's names: one-to-one, complete, and still a game that can be won."""

import importlib.util

import pytest

from sad_components.envs.household.renaming import Renaming
from sad_components.envs.household.world import OBJECTS
from sad_components.evaluation.policies import ExpertPolicy
from sad_components.evaluation.pool import EnvironmentPool
from sad_components.evaluation.rollout import Job, rollout

INSTALLED = all(importlib.util.find_spec(name) for name in ("alfworld", "textworld"))
needs_engine = pytest.mark.skipif(not INSTALLED, reason="household extra not installed")
TEXTS = (
    "On the countertop 1, you see a apple 1, a mug 2, and a mug 12.",
    "An egg often lies in the fridge; mugs and watches do not. Apples neither.",
    "take soapbar 1 from bathtubbasin 1",
    "A bookshelf, the desklamp and a fridge keep their names.",
)


def test_names_are_exchanged_and_come_back():
    names = Renaming("train-00001")
    for text in TEXTS:
        assert names.restore(names.show(text)) == text
    shown = {names.show(kind) for kind in OBJECTS}
    assert shown == set(OBJECTS)
    assert sum(names.show(kind) != kind for kind in OBJECTS) > len(OBJECTS) // 2
    assert names.show(TEXTS[3]) == TEXTS[3]
    assert Renaming("train-00002").show(TEXTS[0]) != names.show(TEXTS[0])
    assert Renaming().show(TEXTS[0]) == TEXTS[0]


def test_numbers_are_exchanged_for_each_kind_of_object():
    names = Renaming("train-00001")
    for kind in ("mug", "desklamp"):
        numbers = [names.show(f"{kind} {n}").split()[1] for n in range(1, 10)]
        assert sorted(numbers) == list("123456789")
        assert numbers != list("123456789")
    assert names.show("mug 12 and two 3") == f"{names.show('mug')} 12 and two 3"
    first, second = (names.show(f"{kind} 1")[-1] for kind in ("mug", "desklamp"))
    assert names.show("use desklamp 1 on mug 1").split()[2] == second
    assert names.show("take mug 1")[-1] == first
    assert names.show("from cabinet 1 to drawer 2") == "from cabinet 1 to drawer 2"


def test_articles_and_plurals_follow_the_name():
    names = Renaming("train-00001")
    an = next(k for k in OBJECTS if names.show(k)[0] in "aeiou")
    other = next(k for k in OBJECTS if names.show(k)[0] not in "aeiou")
    with_article = {k: f"{'an' if k[0] in 'aeiou' else 'a'} {k}" for k in OBJECTS}
    assert names.show(with_article[an]) == f"an {names.show(an)}"
    assert names.show(with_article[other]) == f"a {names.show(other)}"
    assert names.show(f"you see a {an} 1").startswith(f"you see a {names.show(an)} ")


def episodes(**options):
    with EnvironmentPool("household", options, 3) as pool:
        jobs = [Job(task) for task in pool.env.tasks(6)]
        return list(rollout(ExpertPolicy("household-expert"), pool, jobs))


@needs_engine
def test_the_expert_wins_renamed_games_and_says_the_same_things():
    plain = episodes(wrong_turn_share=0.5)
    renamed = episodes(wrong_turn_share=0.5, renamed_share=1.0)
    assert all(episode.won for episode in renamed)
    for one, other in zip(plain, renamed, strict=True):
        names = Renaming(other.trajectory.meta["names"])
        assert "names" not in one.trajectory.meta
        told = [m.text for m in other.trajectory.messages]
        assert told != [m.text for m in one.trajectory.messages]
        # the instructions are no part of the game
        assert [names.restore(t) for t in told[1:]] == [m.text for m in one.trajectory.messages[1:]]
        assert names.restore(other.trajectory.task) == one.trajectory.task


@needs_engine
def test_a_share_of_the_games_is_renamed():
    found = episodes(renamed_share=0.5)
    renamed = ["names" in episode.trajectory.meta for episode in found]
    assert any(renamed)
    assert not all(renamed)
    with pytest.raises(ValueError, match=r"renamed_share is a probability in \[0, 1\]; got 2"):
        episodes(renamed_share=2)
