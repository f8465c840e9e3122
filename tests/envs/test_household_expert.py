"""Beliefs, decisions and thoughts from observations alone: no engine needed."""

import random
import re

import pytest

from sad_components.envs.household import Expert
from sad_components.envs.household.beliefs import Beliefs, Task
from sad_components.envs.household.checking import CheckingNarrator, narrator_of
from sad_components.envs.household.thoughts import Narrator, plural, with_article
from sad_components.envs.household.wrong_turns import (
    false_claim,
    overlooking,
    schedule,
    wrong_action,
)

ROOM = (
    "You are in the middle of a room. Looking quickly around you, you see a cabinet 2, "
    "a cabinet 1, a coffeemachine 1, a countertop 1, a drawer 1, a fridge 1, a microwave 1, "
    "a sinkbasin 1, and a stoveburner 1.\nYour task is to: {task}."
)


def expert(task, *observations, seed=0):
    history = [("", observation) for observation in observations]
    return Expert(ROOM.format(task=task), random.Random(seed), history)


@pytest.mark.parametrize(
    ("sentence", "task"),
    [
        ("put a mug in shelf", Task("mug", "shelf")),
        ("put some mug on shelf", Task("mug", "shelf")),
        ("look at cd under the desklamp", Task("cd", "desklamp", in_light=True)),
        ("examine the cd with the desklamp", Task("cd", "desklamp", in_light=True)),
        ("put a clean mug in shelf", Task("mug", "shelf", "clean")),
        ("clean some mug and put it in shelf", Task("mug", "shelf", "clean")),
        ("put a hot mug in shelf", Task("mug", "shelf", "heat")),
        ("heat some mug and put it in shelf", Task("mug", "shelf", "heat")),
        ("put a cool mug in shelf", Task("mug", "shelf", "cool")),
        ("cool some mug and put it in shelf", Task("mug", "shelf", "cool")),
        ("put two mug in shelf", Task("mug", "shelf", count=2)),
        ("find two mug and put them in shelf", Task("mug", "shelf", count=2)),
    ],
)
def test_every_wording_is_understood(sentence, task):
    assert Task.parse(sentence) == task


def test_unknown_task_is_an_error():
    with pytest.raises(ValueError, match="got 'slice the bread'"):
        Task.parse("slice the bread")
    with pytest.raises(ValueError, match="ends with the line 'Your task is to"):
        Beliefs("You are in a room.")


def test_search_takes_any_usual_place_first():
    decision = expert("heat some mug and put it in cabinet").decide()
    assert decision.situation == "search"
    assert decision.tier == 0
    usual = ("go to cabinet 1", "go to cabinet 2", "go to coffeemachine 1", "go to countertop 1")
    assert decision.acceptable == usual


def test_search_order_varies():
    task = "put a mug in fridge"
    assert len({expert(task, seed=seed).decide().action for seed in range(20)}) > 2


def listed(task, *observations, search="listed"):
    history = [("", observation) for observation in observations]
    return Expert(ROOM.format(task=task), random.Random(0), history, search)


def nothing_at(*places):
    return [f"You arrive at {place}. On the {place}, you see nothing." for place in places]


@pytest.mark.parametrize(
    ("task", "observations", "action"),
    [
        ("put a mug in fridge", [], "go to cabinet 2"),
        ("put a mug in fridge", nothing_at("cabinet 2"), "go to cabinet 1"),
        ("put a mug in fridge", nothing_at("stoveburner 1"), "go to cabinet 2"),  # round the end
        ("put a mug in fridge", nothing_at("drawer 1", "coffeemachine 1"), "go to countertop 1"),
        (
            "put a mug in fridge",
            nothing_at("countertop 1", "coffeemachine 1"),
            "go to countertop 1",
        ),
        (
            "look at mug under the desklamp",
            ["You pick up the mug 1 from the drawer 1.", *nothing_at("drawer 1")],
            "go to fridge 1",
        ),
    ],
)
def test_search_round_the_room_takes_the_next_place_whatever_it_has_seen(
    task, observations, action
):
    decision = listed(task, *observations).decide()
    seen = {o.split("arrive at ")[1].split(".")[0] for o in observations if "arrive" in o}
    assert decision.action == decision.acceptable[0] == action
    assert decision.tier is None
    assert not seen & {a.removeprefix("go to ") for a in decision.acceptable[1:]}


def test_search_round_the_room_calls_going_back_to_what_was_seen_as_good():
    seen = "You arrive at drawer 1. On the drawer 1, you see a {}."
    mug = listed("put a mug in fridge", seen.format("mug 1"), *nothing_at("cabinet 2")).decide()
    assert mug.action == "go to cabinet 1"
    assert "go to drawer 1" in mug.acceptable
    task = "look at mug under the desklamp"
    held = "You pick up the mug 1 from the cabinet 2."
    lamp = listed(task, seen.format("desklamp 1"), *nothing_at("cabinet 2"), held).decide()
    assert (lamp.situation, lamp.action) == ("search_lamp", "go to cabinet 1")
    assert "go to drawer 1" in lamp.acceptable


def test_search_round_the_room_looks_into_what_is_closed_on_its_way_to_what_it_has_seen():
    observations = [
        "You arrive at countertop 1. On the countertop 1, you see a mug 1.",
        "You arrive at drawer 1. The drawer 1 is closed.",
    ]
    assert listed("put a mug in fridge", *observations).decide().action == "open drawer 1"


def test_search_round_the_room_does_not_name_the_number_or_a_reason():
    for seed in range(20):
        player, narrator = listed("put a mug in fridge"), Narrator("dense", random.Random(seed))
        thought = narrator.thought(player.decide(), player.beliefs)
        assert "cabinet" in thought
        assert not re.search(r"\d|usual|likely|often", thought)


def test_unknown_search_is_an_error():
    with pytest.raises(ValueError, match="one of likely, listed; got 'random'"):
        listed("put a mug in fridge", search="random")


def test_search_never_returns_to_a_seen_place():
    decision = expert(
        "put a mug in fridge",
        "You arrive at countertop 1. On the countertop 1, you see nothing.",
    ).decide()
    assert "go to countertop 1" not in decision.acceptable


@pytest.mark.parametrize(
    ("observations", "acceptable"),
    [
        (["You arrive at cabinet 1. The cabinet 1 is closed."], ["open cabinet 1"]),
        (
            ["You arrive at countertop 1. On the countertop 1, you see a mug 1, and a mug 2."],
            ["take mug 1 from countertop 1", "take mug 2 from countertop 1"],
        ),
        (["You pick up the mug 1 from the countertop 1."], ["go to microwave 1"]),
        (
            [
                "You pick up the mug 1 from the countertop 1.",
                "You arrive at microwave 1. The microwave 1 is closed.",
            ],
            ["heat mug 1 with microwave 1"],
        ),
        (
            [
                "You pick up the mug 1 from the countertop 1.",
                "You heat the mug 1 using the microwave 1.",
            ],
            ["go to cabinet 1", "go to cabinet 2"],
        ),
        (  # cooled after it was heated: not hot any more
            [
                "You pick up the mug 1 from the countertop 1.",
                "You heat the mug 1 using the microwave 1.",
                "You cool the mug 1 using the fridge 1.",
            ],
            ["go to microwave 1"],
        ),
        (
            [
                "You pick up the mug 1 from the countertop 1.",
                "You heat the mug 1 using the microwave 1.",
                "You arrive at cabinet 2. The cabinet 2 is closed.",
            ],
            ["open cabinet 2"],
        ),
    ],
)
def test_takes_over_from_any_state(observations, acceptable):
    decision = expert("heat some mug and put it in cabinet", *observations).decide()
    assert list(decision.acceptable) == acceptable
    assert decision.action in acceptable


def test_drops_what_is_not_the_target():
    decision = expert(
        "put a mug in fridge", "You pick up the pot 1 from the stoveburner 1."
    ).decide()
    assert decision.phase == "drop"
    assert "go to stoveburner 1" in decision.acceptable
    assert "go to coffeemachine 1" not in decision.acceptable


def test_second_object_goes_beside_the_first():
    decision = expert(
        "put two mug in cabinet",
        "You open the cabinet 1. The cabinet 1 is open. In it, you see nothing.",
        "You move the mug 1 to the cabinet 1.",
        "You pick up the mug 2 from the countertop 1.",
        "You arrive at cabinet 2. The cabinet 2 is closed.",
    ).decide()
    assert decision.acceptable == ("go to cabinet 1",)


def test_dense_thinks_always_and_sparse_only_when_the_sub_goal_changes():
    observations = [
        "You arrive at countertop 1. On the countertop 1, you see nothing.",
        "You arrive at coffeemachine 1. On the coffeemachine 1, you see a mug 1.",
    ]
    thoughts = {}
    for style in ("dense", "sparse"):
        player = expert("put a mug in fridge")
        narrator = Narrator(style, random.Random(0))
        thoughts[style] = [narrator.thought(player.decide(), player.beliefs)]
        for observation in observations:
            player.observe(observation)
            thoughts[style].append(narrator.thought(player.decide(), player.beliefs))
    assert all(thoughts["dense"])
    assert [bool(thought) for thought in thoughts["sparse"]] == [True, False, True]


def checking(task, *observations):
    """The thought after each observation, in the style that writes down what it looks up."""
    player, narrator = listed(task), CheckingNarrator(random.Random(0))
    thoughts = [narrator.thought(player.decide(), player.beliefs)]
    for observation in observations:
        player.observe(observation)
        thoughts.append(narrator.thought(player.decide(), player.beliefs))
    return thoughts


#: What says that something is here or not, up to where only that can tell.
CHECK = r"(The|As for the|Wanted:) {}( \d+)?\b"


def test_checking_says_first_whether_the_thing_sought_is_here():
    first, *rest = checking(
        "put a mug in fridge",
        "You arrive at cabinet 1. The cabinet 1 is closed.",
        "You open the cabinet 1. The cabinet 1 is open. In it, you see nothing.",
        "You arrive at countertop 1. On the countertop 1, you see a apple 1, and a cup 2.",
        "Nothing happens.",
        "You arrive at coffeemachine 1. On the coffeemachine 1, you see a pan 1, and a mug 2.",
        "You pick up the mug 2 from the coffeemachine 1.",
    )
    numbers = [
        match and (match[2] or "none")
        for match in (re.match(CHECK.format("mug"), thought) for thought in [first, *rest])
    ]
    assert numbers == [None, None, "none", "none", "none", " 2", None]
    assert ["not here" in thought for thought in rest] == [False, True, True, True, False, False]


def test_checking_reads_the_next_place_off_the_list_in_its_own_words():
    thoughts = checking(
        "put a mug in fridge", *nothing_at("cabinet 2", "fridge 1", "stoveburner 1")
    )
    room = ROOM.format(task="").split("\n")[0]
    quotes = [thought.rsplit(": ", 1)[1].removesuffix(".") for thought in thoughts]
    assert quotes == [
        "around you, you see a cabinet 2",
        "a cabinet 2, a cabinet 1",
        "a fridge 1, a microwave 1",
        "a stoveburner 1; around you, you see a cabinet 2",
    ]
    assert all(quote in room for quote in quotes[:3])
    before = checking("put a mug in fridge", *nothing_at("sinkbasin 1"))[-1]
    assert before.endswith("a sinkbasin 1, and a stoveburner 1.")


def test_checking_takes_up_its_plan_word_by_word_and_says_whether_this_is_the_place():
    plan, *_, taken, there, treated, goal, opened = checking(
        "cool some mug and put it in cabinet",
        "You arrive at countertop 1. On the countertop 1, you see a mug 1.",
        "You pick up the mug 1 from the countertop 1.",
        "You arrive at fridge 1. The fridge 1 is closed.",
        "You cool the mug 1 using the fridge 1.",
        "You arrive at cabinet 1. The cabinet 1 is closed.",
        "You open the cabinet 1. The cabinet 1 is open. In it, you see nothing.",
    )
    assert "a mug, then the fridge to cool it, last the cabinet." in plan
    for thought in (taken, there):
        assert "a mug, then the fridge to cool it." in thought
    for thought in (treated, goal, opened):
        assert thought.startswith("I did cool it, last the cabinet.")
    assert "countertop 1, not there." in taken
    assert "fridge 1, right there." in there
    assert "fridge 1, not there." in treated
    assert "cabinet 1, right there, but it is closed." in goal
    assert "cabinet 1, right there." in opened


def test_checking_comes_after_the_words_about_a_slip():
    player, narrator = listed("put a mug in fridge"), CheckingNarrator(random.Random(0))
    narrator.thought(player.decide(), player.beliefs)
    player.observe("You arrive at countertop 1. On the countertop 1, you see a mug 3.")
    thought = narrator.thought(player.decide(), player.beliefs, slip="invalid")
    assert not re.match(CHECK.format("mug"), thought)
    assert re.search(CHECK.format("mug"), thought)[2] == " 3"


def test_checking_keeps_in_every_thought_where_the_first_of_two_lies():
    *before, placed, searching, found, carrying = checking(
        "put two mug in drawer",
        "You arrive at countertop 1. On the countertop 1, you see a mug 1.",
        "You pick up the mug 1 from the countertop 1.",
        "You arrive at drawer 1. On the drawer 1, you see nothing.",
        "You move the mug 1 to the drawer 1.",
        "You arrive at fridge 1. The fridge 1 is open. In it, you see nothing.",
        "You arrive at cabinet 2. On the cabinet 2, you see a mug 2.",
        "You pick up the mug 2 from the cabinet 2.",
    )
    assert not any("One is at" in thought for thought in before)
    for thought in (placed, searching, found, carrying):
        assert thought.startswith("One is at the drawer 1. ")
    assert "not here" not in placed  # one is, and is not wanted
    assert "right there" in placed
    assert "last the drawer 1." in carrying


def test_checking_looks_for_the_lamp_too():
    thoughts = checking(
        "look at mug under the desklamp",
        "You arrive at countertop 1. On the countertop 1, you see a mug 1.",
        "You pick up the mug 1 from the countertop 1.",
        "You arrive at cabinet 2. On the cabinet 2, you see a cup 1, and a desklamp 1.",
    )
    assert "a mug, last the light of the desklamp." in thoughts[-2]
    assert re.search(CHECK.format("desklamp") + r"(:| is)?,? not here", thoughts[-2])[2] is None
    assert re.match(CHECK.format("desklamp"), thoughts[-1])[2] == " 1"


def test_checking_gives_reasons_where_the_search_is_by_likelihood():
    player, narrator = expert("put a mug in fridge"), CheckingNarrator(random.Random(0))
    assert "mug" in narrator.thought(player.decide(), player.beliefs).split(". ")[1]


def test_unknown_style_is_an_error():
    with pytest.raises(ValueError, match="one of dense, checking, sparse; got 'verbose'"):
        narrator_of("verbose", random.Random(0))


@pytest.mark.parametrize("seed", range(20))
def test_wrong_actions_are_never_acceptable_ones(seed):
    player = expert(
        "heat some mug and put it in cabinet",
        "You arrive at countertop 1. On the countertop 1, you see a mug 1.",
        "You pick up the mug 1 from the countertop 1.",
    )
    admissible = [f"go to {name}" for name in player.beliefs.receptacles]
    decision = player.decide()
    action, kind = wrong_action(decision, player.beliefs, admissible, random.Random(seed))
    assert action not in decision.acceptable
    assert (action in admissible) == (kind == "detour")


SEARCHING = ["You arrive at countertop 1. On the countertop 1, you see a cup 1."]
FOUND = ["You arrive at countertop 1. On the countertop 1, you see a mug 1, and a mug 2."]


def test_a_false_claim_takes_what_is_not_there():
    player = listed("put a mug in fridge", *SEARCHING)
    claim = false_claim(player.decide(), player.beliefs, random.Random(0))
    assert re.fullmatch(r"take mug [123] from countertop 1", claim.action)
    thought = CheckingNarrator(random.Random(0)).thought(claim, player.beliefs)
    assert claim.action.split(" from")[0].removeprefix("take ") in thought


@pytest.mark.parametrize(
    "observations", [[], FOUND, ["You arrive at drawer 1. The drawer 1 is closed."]]
)
def test_nothing_is_claimed_where_nothing_was_looked_for_in_vain(observations):
    player = listed("put a mug in fridge", *observations)
    assert false_claim(player.decide(), player.beliefs, random.Random(0)) is None


def test_who_overlooks_a_thing_searches_on_and_the_others_knowledge_stays():
    player = listed("put a mug in fridge", *FOUND)
    blind = overlooking(player.beliefs, "mug")
    assert player.decide(blind).situation == "search"
    assert player.decide().situation == "take"


def test_share_of_wrong_turns():
    rng = random.Random(0)
    assert not any(schedule(0.0, rng) for _ in range(100))
    counts = [len(schedule(1.0, rng)) for _ in range(200)]
    assert set(counts) == {1, 2}
    assert 0.2 < sum(bool(schedule(0.25, rng)) for _ in range(1000)) / 1000 < 0.3


def test_words():
    assert [plural(n) for n in ("shelf", "watch", "tomato", "mug", "butterknife")] == [
        "shelves",
        "watches",
        "tomatoes",
        "mugs",
        "butterknives",
    ]
    assert with_article("apple") == "an apple"
    assert with_article("mug") == "a mug"
