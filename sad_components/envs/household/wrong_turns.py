"""Mistakes on purpose: what a policy does wrong, so that recovery can be learnt."""

from __future__ import annotations

import copy
import random
from collections.abc import Collection

from sad_components.envs.household.beliefs import Beliefs
from sad_components.envs.household.expert import Decision
from sad_components.envs.household.world import LAMP, STATIONS, kind_of

#: First step at which a wrong turn may happen, and how far apart two are at most.
_EARLIEST, _LATEST, _WIDEST_GAP = 1, 4, 4
_TWO_SHARE = 0.3
_DETOUR_SHARE = 0.3
_HIGHEST_CLAIMED = 3


def schedule(share: float, rng: random.Random) -> frozenset[int]:
    """Steps (0-based) of the expert before which an episode goes wrong: none, one or two.

    Args:
        share: probability in [0, 1] that the episode has any.
    """
    if rng.random() >= share:
        return frozenset()
    first = rng.randint(_EARLIEST, _LATEST)
    if rng.random() >= _TWO_SHARE:
        return frozenset({first})
    return frozenset({first, first + rng.randint(1, _WIDEST_GAP)})


def wrong_action(
    decision: Decision,
    beliefs: Beliefs,
    admissible: Collection[str],
    rng: random.Random,
    standing: bool = False,
) -> tuple[str, str]:
    """An action that does not help, and its kind: ``invalid`` or ``detour``.

    An ``invalid`` one is not admissible; a ``detour`` goes back to a place already seen. With
    ``standing`` an invalid one may go to where one stands.
    """
    detours = [
        f"go to {place}"
        for place in sorted(beliefs.contents)
        if place != beliefs.location and f"go to {place}" not in decision.acceptable
    ]
    if detours and decision.action.startswith("go to ") and rng.random() < _DETOUR_SHARE:
        return rng.choice(detours), "detour"
    invalid = [a for a in _impossible(decision, beliefs, standing) if a not in admissible]
    return rng.choice(invalid), "invalid"


def false_claim(decision: Decision, beliefs: Beliefs, rng: random.Random) -> Decision | None:
    """Taking or using what is sought where it is not; None unless a search goes on from here."""
    here = beliefs.location
    if here not in beliefs.contents or here in beliefs.closed:
        return None
    number = rng.randint(1, _HIGHEST_CLAIMED)
    if decision.situation == "search":
        return Decision("take", f"take {beliefs.task.target} {number} from {here}", ())
    if decision.situation == "search_lamp":
        return Decision("use_lamp", f"use {LAMP} {number}", ())
    return None


def overlooking(beliefs: Beliefs, sought: str) -> Beliefs:
    """What somebody would know who has not seen the ``sought`` kind of thing here."""
    blind = copy.deepcopy(beliefs)
    seen = blind.contents.get(blind.location or "", set())
    seen -= {thing for thing in seen if kind_of(thing) == sought}
    return blind


def _impossible(decision: Decision, beliefs: Beliefs, standing: bool) -> list[str]:
    """Likely mistakes: a step skipped, a thing that is not there, a verb the game has not."""
    task, here, held = beliefs.task, beliefs.location, beliefs.holding
    verb, rest = decision.action.split(" ", 1)
    out = []
    if verb == "go":
        place = rest.removeprefix("to ")
        kind = kind_of(place)
        out += [f"walk to {place}", f"go to {kind} {len(beliefs.of_kind(kind)) + 1}"]
        if here and standing:
            out.append(f"go to {here}")
    if verb == "open":
        out.append(f"look in {rest}")
    if verb == "take":
        out.append(f"pick up {rest.split(' from ')[0]}")
    if verb == "move":
        out.append(f"put {rest.replace(' to ', ' in/on ')}")
    if verb == "use":
        out.append(f"turn on {rest}")
    if verb in STATIONS:
        out.append(f"{verb} {rest.split(' with ')[0]}")
    if here and not held:
        out.append(f"take {task.target} 1 from {here}")
    if held and decision.situation == "to_station":
        out.append(f"{task.treatment} {held} with {STATIONS[task.treatment]} 1")
    if held and decision.situation in ("to_goal", "open_goal"):
        out.append(f"move {held} to {task.goal} 1")
    return out
