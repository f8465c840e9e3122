"""Games by number: deterministic, solvable in kind, and split by layout."""

import dataclasses
import random

import pytest

from sad_components.envs.household import (
    SPLITS,
    TASK_TYPES,
    Layout,
    layout_fingerprint,
    sample_game,
    split_of,
)
from sad_components.envs.household.games import GAMES_PER_SPLIT
from sad_components.envs.household.world import LAMP, OBJECTS, ROOMS, homes_of, kind_of

LAYOUT = Layout(
    room="kitchen",
    receptacles=("cabinet 1", "cabinet 2", "fridge 1"),
    places=(("apple 1", "fridge 1"), ("mug 1", "cabinet 1"), ("mug 2", "cabinet 2")),
)


def test_same_number_same_game():
    assert sample_game(7, "heldout") == sample_game(7, "heldout")
    assert sample_game(7, "heldout") != sample_game(7, "train")
    assert len({sample_game(seed) for seed in range(50)}) == 50


def test_splits_share_no_layout():
    layouts = {
        split: {layout_fingerprint(sample_game(seed, split).layout) for seed in range(300)}
        for split in SPLITS
    }
    assert not layouts["train"] & layouts["heldout"]
    for split, fingerprints in layouts.items():
        assert {split_of(fingerprint) for fingerprint in fingerprints} == {split}
        assert len(fingerprints) > 290, "layouts hardly ever repeat within a split"


def test_fingerprint_ignores_numbering_only():
    renumbered = dataclasses.replace(
        LAYOUT,
        places=(("apple 1", "fridge 1"), ("mug 1", "cabinet 2"), ("mug 2", "cabinet 1")),
    )
    moved = dataclasses.replace(
        LAYOUT,
        places=(("apple 1", "fridge 1"), ("mug 1", "cabinet 1"), ("mug 2", "cabinet 1")),
    )
    fewer = dataclasses.replace(LAYOUT, receptacles=(*LAYOUT.receptacles, "drawer 1"))
    assert layout_fingerprint(renumbered) == layout_fingerprint(LAYOUT)
    assert layout_fingerprint(moved) != layout_fingerprint(LAYOUT)
    assert layout_fingerprint(fewer) != layout_fingerprint(LAYOUT)


@pytest.mark.parametrize("seed", range(60))
def test_game_is_well_formed(seed):
    game = sample_game(seed, "heldout")
    layout, places = game.layout, dict(game.layout.places)
    assert game.task_type == TASK_TYPES[seed % 6]
    assert 8 <= len(layout.receptacles) <= 14
    for kind, (fewest, most) in ROOMS[layout.room].items():
        assert fewest <= [kind_of(r) for r in layout.receptacles].count(kind) <= most
    for thing, place in places.items():
        assert place in layout.receptacles
        assert kind_of(place) in sum(homes_of(kind_of(thing)), ())
    targets = [thing for thing in places if kind_of(thing) == game.target]
    assert len(targets) >= (2 if game.task_type == "pick_two_obj_and_place" else 1)
    assert all(kind_of(places[thing]) != game.goal for thing in targets), "won before it starts"
    if game.goal == LAMP:
        assert f"{LAMP} 1" in places
    else:
        assert game.goal in OBJECTS[game.target].homes
        assert game.goal in {kind_of(r) for r in layout.receptacles}


@pytest.mark.parametrize("seed", [-1, GAMES_PER_SPLIT])
def test_seed_outside_the_range_is_an_error(seed):
    with pytest.raises(ValueError, match=rf"lies in \[0, {GAMES_PER_SPLIT}\); got {seed}"):
        sample_game(seed)


def test_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="one of train, heldout; got 'test'"):
        sample_game(0, "test")


def test_sampling_leaves_the_global_random_state_alone():
    random.seed(3)
    expected = random.random()
    random.seed(3)
    sample_game(1)
    assert random.random() == expected
