"""Thoughts in the style ``checking``: each says what there is to look up, then what follows.

Made for models that learn the language from these transcripts alone. A thought writes the state
down, in words that stand somewhere in the text already, up to the one word that decides: whether
the thing sought is here, which place the room's list has after this one, which part of the plan
comes next, whether this is the place for it. What a model has to do is to find those words and go
on as they do; it need not remember what it did.
"""

from __future__ import annotations

import random

from sad_components.envs.household.beliefs import Beliefs
from sad_components.envs.household.expert import (
    SEEKING,
    Decision,
    destinations,
    next_listed,
    placed,
)
from sad_components.envs.household.thoughts import (
    DENSE,
    RECOVERIES,
    SEARCH,
    SEEING,
    Narrator,
    plan_of,
    seen,
    slots_of,
)

#: The plan, whose parts later thoughts take up word by word.
_PLANS = {
    "put": "{a_target}, last the {goal}.",
    "two": "{a_target}, last the {goal}, and a second one.",
    "treat": "{a_target}, then the {station} to {treatment} it, last the {goal}.",
    "light": "{a_target}, last the light of the {goal}.",
}
_BEGINNINGS = ("First ", "Plan: ", "To do: ")
#: Up to the kind all are worded alike; only a number or another word then tells whether it is here.
_CHECKS = (
    ("The {thing} is here.", "The {sought} is not here."),
    ("As for the {thing}: it is here.", "As for the {sought}: not here."),
    ("Wanted: {thing}, right here.", "Wanted: {sought}, not here."),
)
#: The room's list as it was told, from the place where one is, or from its beginning.
_ON_THE_LIST = ("Next: {listed}.", "The list: {listed}.", "I go on: {listed}.")
_LIST_BEGINS = "around you, you see"
_HAVING = ("I have {a_target}", "In hand: {a_target}")
#: What is done, up to what the plan has next.
_STEPS = {
    "to_station": "{having}, then the {station} to {treatment} it.",
    "to_goal": "{done}, last the {destination}.",
    "search_lamp": "{having}, last the light of the {goal}.",
}
_STEPS["treat"] = _STEPS["to_station"]
_STEPS["place"] = _STEPS["open_goal"] = _STEPS["to_goal"]
_ELSEWHERE = ("I am at the {here}, not there.", "This is the {here}, not there.")
_THERE = ("I am at the {here}, right there.", "This is the {here}, right there.")
_CLOSED = (
    "I am at the {here}, right there, but it is closed.",
    "This is the {here}, right there, but it is closed.",
)
#: Whether this is the place for it.
_PLACES = {
    "to_station": _ELSEWHERE,
    "to_goal": _ELSEWHERE,
    "treat": _THERE,
    "place": _THERE,
    "open_goal": _CLOSED,
}


class CheckingNarrator(Narrator):
    """Words for decisions in the style ``checking``; one per episode.

    Args:
        rng: chooses among wordings.
    """

    style = "checking"

    def __init__(self, rng: random.Random) -> None:
        super().__init__(self.style, rng)

    def thought(self, decision: Decision, beliefs: Beliefs, slip: str | None = None) -> str:
        """The thought before an action; see :meth:`Narrator.thought`."""
        previous, self._situation = self._situation, decision.situation
        slots = self._slots(decision, beliefs)
        parts = [self._pick(RECOVERIES[slip])] if slip else []
        if previous is None:
            parts.append(self._pick(_BEGINNINGS) + _PLANS[plan_of(beliefs)])
        if "first" in slots:
            parts.append("One is at the {first}.")
        if decision.situation in _PLACES:
            parts += [_STEPS[decision.situation], self._pick(_PLACES[decision.situation])]
        else:
            parts += self._looking(decision, beliefs, slots, previous)
        return " ".join(parts).format(**slots)

    def _slots(self, decision: Decision, beliefs: Beliefs) -> dict[str, str]:
        slots = slots_of(decision, beliefs)
        slots["here"] = beliefs.location or ""
        slots["having"] = self._pick(_HAVING).format(**slots)
        treatment = beliefs.task.treatment
        slots["done"] = f"I did {treatment} it" if treatment else slots["having"]
        slots["destination"] = beliefs.task.goal
        if beliefs.task.count == 2 and placed(beliefs):
            slots["first"] = slots["destination"] = destinations(beliefs)[0]
        return slots

    def _looking(
        self, decision: Decision, beliefs: Beliefs, slots: dict[str, str], previous: str | None
    ) -> list[str]:
        """Whether it is here and, if not, what comes next."""
        situation, parts = decision.situation, []
        if situation == "search_lamp" and previous == "take":
            parts.append(_STEPS[situation])
        thing = seen(decision, beliefs)
        if thing or (thing == "" and previous != "place"):
            slots["thing"] = thing
            parts.append(self._pick(_CHECKS)[0 if thing else 1])
        elif situation in SEEKING and slots.get("first") == slots["here"]:
            parts.append(self._pick(_THERE))
        if situation in SEEKING:
            slots["listed"] = _list_from_here(beliefs)
            parts.append(
                self._pick(_ON_THE_LIST if decision.tier is None else SEARCH[decision.tier])
            )
        elif situation not in SEEING:
            parts.append(self._pick(DENSE[situation]))
        return parts


def narrator_of(style: str, rng: random.Random) -> Narrator:
    """Who words thoughts in a style: ``dense``, ``checking`` or ``sparse``.

    Args:
        style: see :class:`Narrator`.
        rng: chooses among wordings.

    Raises:
        ValueError: no such style.
    """
    return CheckingNarrator(rng) if style == CheckingNarrator.style else Narrator(style, rng)


def _list_from_here(beliefs: Beliefs) -> str:
    here, place, places = beliefs.location, next_listed(beliefs), beliefs.receptacles
    if place == places[0]:
        return f"a {here}; {_LIST_BEGINS} a {place}" if here else f"{_LIST_BEGINS} a {place}"
    return f"a {here}, {'and ' if place == places[-1] else ''}a {place}"
