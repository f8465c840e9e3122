"""A game in ALFWorld's terms: PDDL problem, goal and grammar, as its engine loads them."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path
from types import ModuleType

from sad_components.envs.household.games import Game
from sad_components.envs.household.world import LAMP, OBJECTS, OPENABLE, kind_of

MISSING_EXTRA = (
    "the household games need ALFWorld's engine, which is not installed; "
    "run: pip install 'torchtune-sad[household]'"
)

#: Types that the domain's actions name, so that every problem has to declare them.
_TYPES_OF_DOMAIN = ("sinkbasin", "microwave", "fridge", "knife", "butterknife")
_BASINS = {"sinkbasin": "sink", "bathtubbasin": "bathtub"}
_START = "loc_bar_start"
_PREDICATE_OF = {"clean": "cleanable", "heat": "heatable", "cool": "coolable"}


def game_data(game: Game) -> dict[str, object]:
    """What ``game.tw-pddl`` holds: ``pddl_domain``, ``grammar``, ``pddl_problem``, ``solvable``.

    Raises:
        ImportError: the ``household`` extra is not installed.
    """
    domain, grammar = domain_and_grammar()
    return {
        "pddl_domain": domain,
        "grammar": grammar.replace("UNKNOWN GOAL", task_sentence(game)),
        "pddl_problem": problem_text(game),
        "solvable": True,
    }


@functools.cache
def domain_and_grammar() -> tuple[str, str]:
    """The texts of ALFWorld's ``alfred.pddl`` and ``alfred.twl2``."""
    data = _alfworld_folder() / "data"
    return (data / "alfred.pddl").read_text(), (data / "alfred.twl2").read_text()


def task_sentence(game: Game) -> str:
    """The task in one of ALFWorld's own wordings: ``put a clean mug in shelf``."""
    template = _goal_library().gdict[game.task_type]["templates"][game.wording]
    return template.format(obj=game.target, recep=game.goal, toggle=LAMP)


def entity_ids(game: Game) -> dict[str, str]:
    """PDDL id of every receptacle and object name, mangled as ALFWorld mangles its own.

    ALFWorld's demangler numbers the ids of a kind from the last to the first; ids are chosen so
    that it arrives at the very names of the layout.
    """
    names = [*game.layout.receptacles, *(thing for thing, _ in game.layout.places)]
    count = {kind: sum(kind_of(n) == kind for n in names) for kind in map(kind_of, names)}
    ids = {}
    for name in names:
        kind, number = name.split(" ")
        place = f"{count[kind] - int(number):02d}"
        basin = _BASINS.get(kind)
        ids[name] = f"{basin}_bar_{place}_bar_{kind}" if basin else f"{kind}_bar_{place}"
    return ids


def problem_text(game: Game) -> str:
    """The PDDL problem: typed objects, initial facts, and the goal from ALFWorld's library."""
    ids = entity_ids(game)
    receptacles, places = game.layout.receptacles, game.layout.places
    objects = [thing for thing, _ in places]
    receptacle_kinds = sorted(set(map(kind_of, receptacles)))
    object_kinds = sorted(set(map(kind_of, objects)))
    types = sorted({*receptacle_kinds, *_TYPES_OF_DOMAIN[:3]})
    object_types = sorted({*object_kinds, *_TYPES_OF_DOMAIN[3:]})

    declared = ["agent1 - agent", f"{_START} - location"]
    declared += [f"{kind}type - rtype" for kind in types]
    declared += [f"{kind}type - otype" for kind in object_types]
    declared += [f"{ids[name]} - object" for name in objects]
    declared += [f"{ids[name]} - receptacle" for name in receptacles]
    declared += [f"{_location(ids[name])} - location" for name in receptacles]

    facts = ["= (total-cost) 0", f"atlocation agent1 {_START}"]
    for name in receptacles:
        facts.append(f"receptacletype {ids[name]} {kind_of(name)}type")
        facts.append(f"receptacleatlocation {ids[name]} {_location(ids[name])}")
        if kind_of(name) in OPENABLE:
            facts.append(f"openable {ids[name]}")
    for name, place in places:
        facts += _object_facts(ids[name], kind_of(name), ids[place])
    facts += [
        f"cancontain {receptacle}type {thing}type"
        for thing in object_kinds
        if thing != LAMP
        for receptacle in receptacle_kinds
        if receptacle in OBJECTS[thing].homes
    ]
    return "\n".join(
        [
            "(define (problem household)",
            "(:domain alfred)",
            "(:requirements :adl)",
            "(:objects",
            *declared,
            ")",
            "(:init",
            *(f"({fact})" for fact in facts),
            ")",
            _goal_text(game),
        ]
    )


def _object_facts(thing: str, kind: str, place: str) -> list[str]:
    facts = [
        f"objecttype {thing} {kind}type",
        f"inreceptacle {thing} {place}",
        f"objectatlocation {thing} {_location(place)}",
    ]
    if kind == LAMP:
        return [*facts, f"toggleable {thing}"]
    treatments = [_PREDICATE_OF[name] for name in OBJECTS[kind].treatments]
    return [*facts, f"pickupable {thing}", *(f"{name} {thing}" for name in treatments)]


def _goal_text(game: Game) -> str:
    """The goal, with the parenthesis that closes the problem (ALFWorld's templates hold it)."""
    template = _goal_library().gdict[game.task_type]["pddl"]
    text = template.format(obj=game.target, recep=game.goal, toggle=LAMP)
    return re.sub(r"\s*\n\s*", "\n", text.replace("#", "-")).strip()


def _location(receptacle: str) -> str:
    return f"loc_bar_{receptacle}"


def _alfworld_folder() -> Path:
    """ALFWorld's package folder, found without importing it (its import makes a cache folder)."""
    found = importlib.util.find_spec("alfworld")
    if found is None or not found.submodule_search_locations:
        raise ImportError(MISSING_EXTRA)
    return Path(found.submodule_search_locations[0])


@functools.cache
def _goal_library() -> ModuleType:
    path = _alfworld_folder() / "gen" / "goal_library.py"
    spec = importlib.util.spec_from_file_location("_alfworld_goal_library", path)
    if spec is None or spec.loader is None:
        raise ImportError(MISSING_EXTRA)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
