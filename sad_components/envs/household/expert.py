"""An expert that knows only what it was told: it has to search, in an order that varies."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from sad_components.envs.household.beliefs import Beliefs
from sad_components.envs.household.world import LAMP, STATIONS, homes_of, kind_of

#: Situation of a decision -> the sub-goal it serves.
PHASES = {
    "search": "find",
    "open": "find",
    "fetch": "find",
    "take": "take",
    "to_station": "treat",
    "treat": "treat",
    "search_lamp": "light",
    "open_lamp": "light",
    "to_lamp": "light",
    "use_lamp": "light",
    "to_goal": "place",
    "open_goal": "place",
    "place": "place",
    "to_drop": "drop",
    "open_drop": "drop",
    "drop": "drop",
}

#: Situations in which the next place to look into is chosen.
SEEKING = ("search", "search_lamp")
#: Going back to what was seen -> going to look for it, and looking into what is closed.
_REMEMBERED = {"fetch": ("search", "open"), "to_lamp": ("search_lamp", "open_lamp")}
#: Orders of a search: usual places first, at random among equals; or as the room lists its places.
SEARCHES = ("likely", "listed")


@dataclass(frozen=True)
class Decision:
    """What the expert does, and why.

    Args:
        situation: a key of ``PHASES``.
        action: the command it chose.
        acceptable: every command that is as good, the chosen one included.
        tier: for a search, how usual a place is: 0 usual, 1 possible, 2 odd; None where that
            does not matter.
    """

    situation: str
    action: str
    acceptable: tuple[str, ...]
    tier: int | None = 0

    @property
    def phase(self) -> str:
        """The sub-goal: ``find``, ``take``, ``treat``, ``light``, ``place`` or ``drop``."""
        return PHASES[self.situation]


class Expert:
    """Plays a game from its observations; any history may come before.

    Args:
        first_observation: the room and the task.
        rng: decides among equals.
        history: ``(action, observation)`` pairs that came before, whoever acted.
        search: ``likely`` goes to usual places first, at random among equals, and back to what it
            has seen; ``listed`` goes round the room in the order in which it was told of, from
            where it stands, whatever it has seen: nothing has to be remembered.

    Raises:
        ValueError: no such order of a search.

    Example:
        >>> expert = Expert(env.reset(3), random.Random(0))
        >>> decision = expert.decide()
        >>> expert.observe(env.step(decision.action)[0])
    """

    def __init__(
        self,
        first_observation: str,
        rng: random.Random,
        history: Iterable[tuple[str, str]] = (),
        search: str = "likely",
    ) -> None:
        if search not in SEARCHES:
            raise ValueError(f"a search goes by one of {', '.join(SEARCHES)}; got {search!r}")
        self.beliefs = Beliefs(first_observation)
        self._rng, self._search = rng, search
        for _, observation in history:
            self.observe(observation)

    def observe(self, observation: str) -> None:
        """Takes in the answer to the last action, its own or another's."""
        self.beliefs.observe(observation)

    def decide(self, beliefs: Beliefs | None = None) -> Decision:
        """The next action; the state of knowledge stays as it is.

        Args:
            beliefs: a state of knowledge; None: its own.
        """
        beliefs = beliefs or self.beliefs
        situation, acceptable, tier = plan(beliefs)
        known: list[str] = []
        if self._search == "listed" and situation in _REMEMBERED:
            kind = LAMP if situation == "to_lamp" else beliefs.task.target
            known = acceptable
            situation, acceptable, tier = _search(beliefs, kind, *_REMEMBERED[situation])
        if self._search == "listed" and situation in SEEKING:
            action = f"go to {next_listed(beliefs)}"
            as_good = dict.fromkeys([action, *known, *_go_to(_unseen(beliefs))])
            return Decision(situation, action, tuple(as_good), None)
        return Decision(situation, self._rng.choice(acceptable), tuple(acceptable), tier)


def next_listed(beliefs: Beliefs) -> str:
    """The place after this one in the room's list, round its end; the first before any move."""
    places, here = beliefs.receptacles, beliefs.location
    return places[(places.index(here) + 1) % len(places)] if here in places else places[0]


_Plan = tuple[str, list[str], int]


def plan(beliefs: Beliefs) -> _Plan:
    """Situation, equally good actions (at least one) and search tier for a state of knowledge."""
    held, task = beliefs.holding, beliefs.task
    if held is None:
        return _fetch(beliefs)
    if kind_of(held) != task.target:
        return _drop(beliefs, held)
    if not beliefs.is_treated(held):
        return _treat(beliefs, held)
    return _light(beliefs) if task.in_light else _place(beliefs, held)


def _fetch(beliefs: Beliefs) -> _Plan:
    target = beliefs.task.target
    places = beliefs.places_of(target)
    done = destinations(beliefs) if placed(beliefs) else []
    places = {
        thing: place
        for thing, place in places.items()
        if not (place in done and beliefs.is_treated(thing))
    }
    here = [thing for thing, place in places.items() if place == beliefs.location]
    if here and beliefs.location in beliefs.closed:
        return "open", [f"open {beliefs.location}"], 0
    if here:
        return "take", [f"take {thing} from {beliefs.location}" for thing in here], 0
    if places:
        return "fetch", _go_to(places.values()), 0
    return _search(beliefs, target, "search", "open")


def _search(beliefs: Beliefs, kind: str, go: str, look_inside: str) -> _Plan:
    here = beliefs.location
    if here in beliefs.closed and here not in beliefs.contents:
        return look_inside, [f"open {here}"], 0
    unseen = _unseen(beliefs)
    likely, possible = homes_of(kind)
    for tier, kinds in enumerate((likely, possible)):
        places = [name for name in unseen if kind_of(name) in kinds]
        if places:
            return go, _go_to(places), tier
    return go, _go_to(unseen), 2


def _unseen(beliefs: Beliefs) -> list[str]:
    """Where to look. All seen without success: things were moved unseen, so look again."""
    return beliefs.unseen() or [r for r in beliefs.receptacles if r != beliefs.location]


def _treat(beliefs: Beliefs, held: str) -> _Plan:
    treatment = beliefs.task.treatment
    stations = beliefs.of_kind(STATIONS[treatment])
    if beliefs.location in stations:
        return "treat", [f"{treatment} {held} with {beliefs.location}"], 0
    return "to_station", _go_to(stations), 0


def _light(beliefs: Beliefs) -> _Plan:
    lamps = beliefs.places_of(LAMP)
    here = [lamp for lamp, place in lamps.items() if place == beliefs.location]
    if here:
        return "use_lamp", [f"use {lamp}" for lamp in here], 0
    if lamps:
        return "to_lamp", _go_to(lamps.values()), 0
    return _search(beliefs, LAMP, "search_lamp", "open_lamp")


def _place(beliefs: Beliefs, held: str) -> _Plan:
    goals = destinations(beliefs)
    if beliefs.location not in goals:
        return "to_goal", _go_to(goals), 0
    if beliefs.location in beliefs.closed:
        return "open_goal", [f"open {beliefs.location}"], 0
    return "place", [f"move {held} to {beliefs.location}"], 0


def _drop(beliefs: Beliefs, held: str) -> _Plan:
    """Gets rid of an object that is not the target."""
    likely, possible = homes_of(kind_of(held))
    places = [name for name in beliefs.receptacles if kind_of(name) in (*likely, *possible)]
    if beliefs.location not in places:
        return "to_drop", _go_to(places), 0
    if beliefs.location in beliefs.closed:
        return "open_drop", [f"open {beliefs.location}"], 0
    return "drop", [f"move {held} to {beliefs.location}"], 0


def placed(beliefs: Beliefs) -> dict[str, int]:
    """Receptacles of the goal's kind -> how many finished targets are known to lie in them."""
    counts: dict[str, int] = {}
    for thing, place in beliefs.places_of(beliefs.task.target).items():
        if kind_of(place) == beliefs.task.goal and beliefs.is_treated(thing):
            counts[place] = counts.get(place, 0) + 1
    return counts


def destinations(beliefs: Beliefs) -> list[str]:
    """Where the target goes: beside one that is there already, else anywhere of the right kind."""
    counts = placed(beliefs)
    if counts:
        # One place even where two tie: what lies in the other is then fetched from there.
        most = max(counts.values())
        return [place for place, count in counts.items() if count == most][:1]
    return beliefs.of_kind(beliefs.task.goal)


def _go_to(places: Iterable[str]) -> list[str]:
    return [f"go to {place}" for place in sorted(set(places))]
