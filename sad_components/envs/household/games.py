"""Games by number: a room, where everything lies, and a task; the same for the same number.

Standard library only: sampling a game needs no engine.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from sad_components.envs.household.world import (
    LAMP,
    OBJECTS,
    ROOMS,
    STATIONS,
    TASK_TYPES,
    homes_of,
    kind_of,
)

SPLITS = ("train", "heldout")
GAMES_PER_SPLIT = 1_000_000_000

_HELDOUT_ONE_IN = 5
_LAYOUT_TRIES = 200
_FEWEST_RECEPTACLES, _MOST_RECEPTACLES = 8, 11
_OTHER_KINDS = 6
_LIKELY_SHARE = 0.8

_TREATMENT_OF = {
    "pick_clean_then_place_in_recep": "clean",
    "pick_heat_then_place_in_recep": "heat",
    "pick_cool_then_place_in_recep": "cool",
}


@dataclass(frozen=True)
class Layout:
    """Where everything is.

    Args:
        room: a key of ``ROOMS``.
        receptacles: names such as ``"cabinet 2"``, sorted.
        places: object name -> the receptacle it lies in, as pairs sorted by object.
    """

    room: str
    receptacles: tuple[str, ...]
    places: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Game:
    """One game: a layout and a task in it.

    Args:
        split: ``train`` or ``heldout``.
        seed: number of the game within its split.
        task_type: one of ``TASK_TYPES``.
        target: kind of the object that the task is about.
        goal: receptacle kind it goes to (the lamp's kind for ``look_at_obj_in_light``).
        wording: which of the task type's sentences is used.
        layout: where everything is.
    """

    split: str
    seed: int
    task_type: str
    target: str
    goal: str
    wording: int
    layout: Layout

    @property
    def id(self) -> str:
        """``heldout-00017``: unique over both splits."""
        return f"{self.split}-{self.seed:05d}"


def layout_fingerprint(layout: Layout) -> str:
    """16 hex digits that are equal for layouts that differ only in how equals are numbered.

    Two layouts are the same when they have the same room, the same receptacle kinds, and the same
    object kinds lying together in them.
    """
    contents: dict[str, list[str]] = {name: [] for name in layout.receptacles}
    for thing, place in layout.places:
        contents[place].append(kind_of(thing))
    shelves = sorted(f"{kind_of(r)}:{','.join(sorted(c))}" for r, c in contents.items())
    text = ";".join([layout.room, *shelves])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def split_of(fingerprint: str) -> str:
    """The one split that may use a layout: a function of the layout itself, so none is shared."""
    return "heldout" if int(fingerprint, 16) % _HELDOUT_ONE_IN == 0 else "train"


def sample_game(seed: int, split: str = "train") -> Game:
    """Game number ``seed`` of a split, of type ``TASK_TYPES[seed % 6]``.

    Args:
        seed: 0 to ``GAMES_PER_SPLIT`` - 1.
        split: ``train`` or ``heldout``; no layout occurs in both.

    Raises:
        ValueError: no such split, or a seed outside the range.
    """
    if split not in SPLITS:
        raise ValueError(f"a split is one of {', '.join(SPLITS)}; got {split!r}")
    if not 0 <= seed < GAMES_PER_SPLIT:
        raise ValueError(f"a game's seed lies in [0, {GAMES_PER_SPLIT}); got {seed}")
    rng = random.Random(SPLITS.index(split) * GAMES_PER_SPLIT + seed)
    task_type = TASK_TYPES[seed % len(TASK_TYPES)]
    for _ in range(_LAYOUT_TRIES):
        room = rng.choice(_rooms_for(task_type))
        receptacles = _sample_receptacles(room, rng)
        target, goal = _sample_task(room, receptacles, task_type, rng)
        copies = 2 if task_type == "pick_two_obj_and_place" else rng.choice((1, 1, 2))
        others = _sample_others(room, receptacles, target, rng)
        places = _sample_places(receptacles, (target, goal), copies, others, rng)
        layout = Layout(room, receptacles, places)
        if split_of(layout_fingerprint(layout)) == split:
            return Game(split, seed, task_type, target, goal, rng.randrange(2), layout)
    raise AssertionError(f"no {split} layout in {_LAYOUT_TRIES} tries: the split hash is skewed")


def _rooms_for(task_type: str) -> tuple[str, ...]:
    if task_type == "look_at_obj_in_light":
        return ("bedroom", "livingroom")
    if task_type in ("pick_heat_then_place_in_recep", "pick_cool_then_place_in_recep"):
        return ("kitchen",)
    if task_type == "pick_clean_then_place_in_recep":
        return ("kitchen", "kitchen", "bathroom")
    return tuple(ROOMS)


def _sample_receptacles(room: str, rng: random.Random) -> tuple[str, ...]:
    limits = ROOMS[room]
    count = {kind: fewest for kind, (fewest, _) in limits.items()}
    optional = [kind for kind, (fewest, most) in limits.items() for _ in range(most - fewest)]
    rng.shuffle(optional)
    wanted = rng.randint(_FEWEST_RECEPTACLES, _MOST_RECEPTACLES)
    for kind in optional[: max(0, wanted - sum(count.values()))]:
        count[kind] += 1
    return tuple(f"{kind} {n}" for kind in sorted(count) for n in range(1, count[kind] + 1))


def _sample_others(
    room: str, receptacles: tuple[str, ...], target: str, rng: random.Random
) -> list[str]:
    kinds = {kind_of(name) for name in receptacles}
    fitting = sorted(
        kind
        for kind, about in OBJECTS.items()
        if kind != target and room in about.rooms and kinds.intersection(about.homes)
    )
    return rng.sample(fitting, min(_OTHER_KINDS, len(fitting)))


def _sample_task(
    room: str, receptacles: tuple[str, ...], task_type: str, rng: random.Random
) -> tuple[str, str]:
    kinds = {kind_of(name) for name in receptacles}
    treatment = _TREATMENT_OF.get(task_type, "")
    choices: dict[str, list[str]] = {}
    for target, about in OBJECTS.items():
        # A sink is no goal for what was cleaned in it: "clean it, then bring it there" is odd.
        homes = [k for k in about.homes if k in kinds and k != STATIONS.get(treatment)]
        fits = room in about.rooms and (not treatment or treatment in about.treatments)
        # A target does not start in its goal, so that it needs another home.
        if fits and len(homes) > 1:
            choices[target] = homes
    target = rng.choice(sorted(choices))
    if task_type == "look_at_obj_in_light":
        return target, LAMP
    return target, rng.choice(choices[target])


def _sample_places(
    receptacles: tuple[str, ...],
    task: tuple[str, str],
    copies: int,
    others: list[str],
    rng: random.Random,
) -> tuple[tuple[str, str], ...]:
    target, goal = task
    places = [
        (f"{target} {n}", _home(target, receptacles, goal, rng)) for n in range(1, copies + 1)
    ]
    if goal == LAMP:
        places.append((f"{LAMP} 1", _home(LAMP, receptacles, "", rng)))
    for kind in others:
        for number in range(1, rng.choice((1, 1, 2)) + 1):
            places.append((f"{kind} {number}", _home(kind, receptacles, "", rng)))
    return tuple(sorted(places))


def _home(kind: str, receptacles: tuple[str, ...], barred: str, rng: random.Random) -> str:
    """A receptacle for an object: mostly one where its kind is likely."""
    likely, possible = (
        [r for r in receptacles if kind_of(r) in kinds and kind_of(r) != barred]
        for kinds in homes_of(kind)
    )
    if likely and (not possible or rng.random() < _LIKELY_SHARE):
        return rng.choice(likely)
    return rng.choice(possible)
