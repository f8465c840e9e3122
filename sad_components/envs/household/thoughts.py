"""The expert's thoughts in words: several wordings each, in three styles.

``dense``: a thought before every action. It tells belief, sub-goal, and what kind of place comes
next and why, but never the action itself. ``checking``: what is to be looked up is written down
word by word, for small models (:mod:`~sad_components.envs.household.checking`). ``sparse``: a
thought only when the sub-goal changes, as in published ReAct transcripts of ALFWorld.
"""

from __future__ import annotations

import random

from sad_components.envs.household.beliefs import Beliefs
from sad_components.envs.household.expert import SEEKING, Decision
from sad_components.envs.household.world import LAMP, RESULTS, STATIONS, homes_of, kind_of

STYLES = ("dense", "checking", "sparse")

# What the task needs, before the first action.
_PLANS = {
    "put": (
        "I need {a_target}, and it goes to the {goal}.",
        "The task: find {a_target}, then bring it to the {goal}.",
        "First I have to get {a_target}; its place is the {goal}.",
    ),
    "treat": (
        "I need {a_target}, {result} from the {station}, and then the {goal}.",
        "Plan: find {a_target}, {treatment} it at the {station}, bring it to the {goal}.",
        "First {a_target}, then the {station} to {treatment} it, last the {goal}.",
    ),
    "two": (
        "I need two {targets} at the same {goal}, one after the other.",
        "Plan: bring one {target} to the {goal}, then a second one.",
        "Two {targets} have to end up at the {goal}; I carry one at a time.",
    ),
    "light": (
        "I need {a_target} in my hand and the light of the {goal}.",
        "Plan: pick up {a_target}, then find the {goal} and switch it on.",
        "First {a_target}, then the {goal} to look at it.",
    ),
}

# What the last observation meant for a search that goes on.
_MISSES = (
    "No {sought} here.",
    "Still no {sought}.",
    "That is not it.",
    "The {sought} is not here.",
    "Nothing useful here.",
)
#: Situations in which something is sought that may be in sight, and those in which it is.
_LOOKING = ("search", "search_lamp", "fetch", "to_lamp")
SEEING = ("take", "use_lamp")
_NEXT_SEARCH = ("Now the second {target}.", "One is done, one more {target} to go.", "One more.")

RECOVERIES = {
    "invalid": (
        "Nothing happened, so that was no possible action.",
        "That did not work.",
        "That had no effect; I have to do it properly.",
        "This is not possible here.",
    ),
    "detour": (
        "I have seen this place before; that was a detour.",
        "Coming back here was no use.",
        "There was no reason to return here.",
        "That was a wrong turn.",
    ),
}

SEARCH = (
    (  # a usual place
        "{A_sought} often lies in or on {where}.",
        "A usual place for {a_sought} is {where}.",
        "I try {where}, where {a_sought} is often kept.",
        "There may well be {a_sought} at {where}.",
        "Most likely {a_sought} is at {where}.",
    ),
    (  # a possible place
        "The usual places are done; it could be at {where}.",
        "Less likely, but {a_sought} may be at {where}.",
        "What is left is {where}, a possible place for {a_sought}.",
        "Then {where} might hold {a_sought}.",
    ),
    (  # an odd place
        "Only odd places are left, so I try {where}.",
        "It must be somewhere unusual, maybe {where}.",
        "All sensible places are done; I check {where} too.",
    ),
)
#: The place is the next one in the room's list.
_GOING_ROUND = (
    "Next comes the {place}.",
    "The next place is the {place}.",
    "I look at the {place} now.",
)
_OPEN = (
    "It is shut, so I look inside.",
    "The {here} is closed; {a_sought} may be in there.",
    "I cannot see what is inside yet.",
    "A closed {here} can hide {a_sought}.",
)
DENSE = {
    "open": _OPEN,
    "open_lamp": _OPEN,
    "fetch": (
        "I remember where {a_target} is, so I return for it.",
        "I have already seen {a_target}; back to that place.",
        "No more searching: I saw {a_target} earlier.",
    ),
    "take": (
        "There is {a_target}, and my hands are free.",
        "Here is the {target} I need.",
        "Found {a_target}; I want it in my hand.",
        "This is what I was looking for: {a_target}.",
    ),
    "to_station": (
        "I hold the {target}. To {treatment} it I need the {station}.",
        "I have it; the {station} comes next.",
        "The {target} must be {result}, which the {station} is for.",
        "With the {target} in hand, the {station} is my next stop.",
    ),
    "treat": (
        "I am at the {station} and the {target} is not {result} yet.",
        "Here I can {treatment} the {target}.",
        "This is the place to make it {result}.",
        "The {station} can now do its work on the {target}.",
    ),
    "to_lamp": (
        "I have the {target}, and I know where the {goal} stands.",
        "The {target} is in my hand; the {goal} was seen earlier.",
        "Now the light: I remember the place of the {goal}.",
    ),
    "use_lamp": (
        "The {goal} is right here and I hold the {target}.",
        "I have the {target} beside the {goal}; only light is missing.",
        "Now I need its light on the {target}.",
    ),
    "to_goal": (
        "The {target} is ready for its place, the {goal}.",
        "I have the {target}; it belongs to the {goal}.",
        "All that is left is to bring it to the {goal}.",
        "Now the {goal} is where I have to be.",
    ),
    "open_goal": (
        "The {goal} is shut, so nothing can go in yet.",
        "It is closed; it has to be open first.",
        "I cannot put anything into a closed {goal}.",
    ),
    "place": (
        "I am at the {goal} with the {target} in hand.",
        "This is where the {target} belongs.",
        "The {goal} is here; I can let go of the {target}.",
        "Arrived; the {target} goes here.",
    ),
    "to_drop": (
        "The {held} is not what I need; it has to go somewhere.",
        "I hold the wrong thing and want my hand free.",
        "What I hold is no help for this task, so I leave it somewhere.",
    ),
    "open_drop": (
        "It is shut, and I want to leave the {held} inside.",
        "To get rid of the {held} I need this open.",
        "The {held} cannot go in while it is closed.",
    ),
    "drop": (
        "The {held} can stay here; my hand must be free.",
        "I leave the {held}, as it is not needed.",
        "My hand has to be free, and the {held} fits here.",
    ),
}
_SPARSE = {
    "find": (
        "I look for {a_sought}. Likely places are {places}.",
        "Now I have to find {a_sought}. It may be at {places}.",
        "Where is {a_sought}? I check {places} first.",
        "{A_sought} is more likely to be at {places}.",
    ),
    "take": (
        "Now I see {a_target}. Next, I pick it up.",
        "Here is {a_target}, so I get it.",
        "I found {a_target}. I need it in my hand.",
    ),
    "treat": (
        "Now I have the {target}. Next, I {treatment} it at the {station}.",
        "I hold the {target}; it has to be {result}, so I need the {station}.",
        "With the {target} in hand, the {station} comes next.",
    ),
    "light": (
        "Now I have the {target}. Next, I need the {goal}.",
        "I hold the {target} and look for the light of the {goal}.",
        "The {target} is in my hand; the {goal} comes next.",
    ),
    "place": (
        "Now the {target} is ready. Next, I bring it to the {goal}.",
        "The {target} goes to the {goal} now.",
        "I have what I need; the {goal} is its place.",
    ),
    "drop": DENSE["to_drop"],
}


class Narrator:
    """Words for decisions; one per episode.

    Args:
        style: ``dense``, ``checking`` or ``sparse``.
        rng: chooses among wordings.

    Raises:
        ValueError: no such style.
    """

    def __init__(self, style: str, rng: random.Random) -> None:
        if style not in STYLES:
            raise ValueError(f"a style of thoughts is one of {', '.join(STYLES)}; got {style!r}")
        self.style = style
        self._rng = rng
        self._phase: str | None = None
        self._situation: str | None = None

    def thought(self, decision: Decision, beliefs: Beliefs, slip: str | None = None) -> str | None:
        """The thought before an action, or None where the style has none.

        Args:
            decision: what will be done.
            beliefs: what is known before it.
            slip: ``invalid`` or ``detour`` when the turn before was one, to be recovered from.
        """
        previous, self._situation = self._situation, decision.situation
        changed, self._phase = decision.phase != self._phase, decision.phase
        if self.style == "sparse" and not changed and not slip:
            return None
        slots, tier = slots_of(decision, beliefs), decision.tier
        opening = self._opening(decision, beliefs, slip, previous)
        parts = [opening]
        if self.style == "sparse":
            parts.append(self._pick(_SPARSE[decision.phase]))
        elif decision.situation in SEEKING:
            parts.append(self._pick(_GOING_ROUND if tier is None else SEARCH[tier]))
        else:
            parts.append(self._pick(DENSE[decision.situation]))
        return " ".join(part.format(**slots) for part in parts if part)

    def interrupt(self) -> None:
        """Says that the last decision was not carried out: no thought goes on from it."""
        if self._situation is not None:
            self._situation = ""

    def _opening(
        self,
        decision: Decision,
        beliefs: Beliefs,
        slip: str | None,
        previous: str | None,
    ) -> str:
        if slip:
            return self._pick(RECOVERIES[slip])
        if previous is None:
            return self._pick(_PLANS[plan_of(beliefs)])
        if previous == "place":
            return self._pick(_NEXT_SEARCH)
        searching = decision.situation in SEEKING
        if searching and previous in (decision.situation, "open", "open_lamp"):
            return self._pick(_MISSES)
        return ""

    def _pick(self, wordings: tuple[str, ...]) -> str:
        return self._rng.choice(wordings)


def plan_of(beliefs: Beliefs) -> str:
    """Which plan a task needs: ``put``, ``treat``, ``two`` or ``light``."""
    task = beliefs.task
    if task.in_light:
        return "light"
    if task.treatment:
        return "treat"
    return "two" if task.count == 2 else "put"


def seen(decision: Decision, beliefs: Beliefs) -> str | None:
    """The thing sought if it is in sight, else empty; None where nothing is sought."""
    if decision.situation in SEEING:
        return " ".join(decision.action.split()[1:3])  # "take mug 2 from shelf 1", "use desklamp 1"
    here = beliefs.contents.get(beliefs.location or "")
    if decision.situation not in _LOOKING or here is None or beliefs.location in beliefs.closed:
        return None
    return None if any(kind_of(thing) == _sought(decision, beliefs) for thing in here) else ""


def _sought(decision: Decision, beliefs: Beliefs) -> str:
    return LAMP if decision.phase == "light" else beliefs.task.target


def slots_of(decision: Decision, beliefs: Beliefs) -> dict[str, str]:
    """What wordings are filled with."""
    task = beliefs.task
    sought = _sought(decision, beliefs)
    place_kind = decision.action.split()[-2]  # "go to cabinet 2", "open cabinet 2"
    return {
        "target": task.target,
        "a_target": with_article(task.target),
        "targets": plural(task.target),
        "goal": task.goal,
        "treatment": task.treatment,
        "result": RESULTS.get(task.treatment, ""),
        "station": STATIONS.get(task.treatment, ""),
        "sought": sought,
        "a_sought": with_article(sought),
        "A_sought": with_article(sought).capitalize(),
        "place": place_kind,
        "where": _where(place_kind, beliefs),
        "here": kind_of(beliefs.location or ""),
        "places": _likely_places(sought, beliefs),
        "held": kind_of(beliefs.holding or ""),
    }


def _where(kind: str, beliefs: Beliefs) -> str:
    """``the fridge`` where there is one, ``one of the shelves`` where there are more."""
    several = len(beliefs.of_kind(kind)) > 1
    return f"one of the {plural(kind)}" if several else f"the {kind}"


def _likely_places(sought: str, beliefs: Beliefs) -> str:
    likely, possible = homes_of(sought)
    kinds = [k for k in (*likely, *possible) if beliefs.of_kind(k)][:3] or ["any place"]
    return kinds[0] if len(kinds) == 1 else f"{', '.join(kinds[:-1])} or {kinds[-1]}"


def with_article(noun: str) -> str:
    """``an apple``, ``a mug``."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """``shelves``, ``watches``, ``mugs``."""
    if noun.endswith(("shelf", "knife")):
        return noun.removesuffix("e").removesuffix("f") + "ves"
    return noun + ("es" if noun.endswith(("s", "sh", "ch", "x", "to")) else "s")
