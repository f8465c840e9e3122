"""What an agent can know of a household game: the task and what observations told so far."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from sad_components.envs.household.world import RESULTS, kind_of

_THING = r"[a-z]+ \d+"
_LISTED = re.compile(rf"\ba ({_THING})")
_TASK_LINE = re.compile(r"Your task is to: (?P<task>.+?)\.?\s*$")
_ARRIVED = re.compile(rf"You arrive at (?P<place>{_THING})\.")
_OPENED = re.compile(rf"You open the (?P<place>{_THING})\.")
_CLOSED = re.compile(rf"(?:You close the (?P<closed>{_THING})|The (?P<shut>{_THING}) is closed)\.")
_ON = re.compile(rf"On the (?P<place>{_THING}), you see (?P<things>.+)\.")
_IN = re.compile(rf"The (?P<place>{_THING}) is open\. In it, you see (?P<things>.+)\.")
_PICKED = re.compile(rf"You pick up the (?P<thing>{_THING}) from the (?P<place>{_THING})\.")
_MOVED = re.compile(rf"You move the (?P<thing>{_THING}) to the (?P<place>{_THING})\.")
_TREATED = re.compile(rf"You (?P<verb>clean|heat|cool) the (?P<thing>{_THING}) using")

_VERB_OF_RESULT = {result: verb for verb, result in RESULTS.items()}
_RESULT = "|".join(_VERB_OF_RESULT)
_VERB = "|".join(RESULTS)
_TASKS = tuple(
    re.compile(pattern)
    for pattern in (
        r"look at (?P<target>\w+) under the (?P<lamp>\w+)",
        r"examine the (?P<target>\w+) with the (?P<lamp>\w+)",
        r"(?P<two>put two) (?P<target>\w+) in (?P<goal>\w+)",
        r"(?P<two>find two) (?P<target>\w+) and put them in (?P<goal>\w+)",
        rf"put a (?P<result>{_RESULT}) (?P<target>\w+) in (?P<goal>\w+)",
        rf"(?P<verb>{_VERB}) some (?P<target>\w+) and put it in (?P<goal>\w+)",
        r"put (?:a|some) (?P<target>\w+) (?:in|on) (?P<goal>\w+)",
    )
)


@dataclass(frozen=True)
class Task:
    """What a task sentence asks for.

    Args:
        target: kind of the object.
        goal: receptacle kind it goes to, or the lamp's kind when ``in_light``.
        treatment: ``clean``, ``heat`` or ``cool`` it first; empty for none.
        count: how many objects.
        in_light: look at the object under the lamp instead of putting it somewhere.
    """

    target: str
    goal: str
    treatment: str = ""
    count: int = 1
    in_light: bool = False

    @classmethod
    def parse(cls, sentence: str) -> Task:
        """From ALFWorld's wording; raises ``ValueError`` for a sentence of no known task."""
        for pattern in _TASKS:
            match = pattern.fullmatch(sentence)
            if match:
                found = match.groupdict()
                return cls(
                    target=found["target"],
                    goal=found.get("goal") or found["lamp"],
                    treatment=found.get("verb") or _VERB_OF_RESULT.get(found.get("result", ""), ""),
                    count=2 if found.get("two") else 1,
                    in_light="lamp" in found,
                )
        raise ValueError(
            f"a household task is worded as ALFWorld words its six types; got {sentence!r}"
        )


class Beliefs:
    """Everything known, updated by observations only.

    Args:
        first_observation: the room and the line ``Your task is to: ..``.

    Raises:
        ValueError: no task line, or a task of no known type.
    """

    def __init__(self, first_observation: str) -> None:
        lines = first_observation.strip().split("\n")
        task_line = _TASK_LINE.search(lines[-1])
        if task_line is None:
            raise ValueError(
                f"the first observation ends with the line 'Your task is to: ..'; got {lines[-1]!r}"
            )
        self.sentence = task_line["task"]
        self.task = Task.parse(self.sentence)
        self.receptacles: tuple[str, ...] = tuple(_LISTED.findall(first_observation))
        self.contents: dict[str, set[str]] = {}
        self.closed: set[str] = set()
        self.location: str | None = None
        self.holding: str | None = None
        self.states: defaultdict[str, set[str]] = defaultdict(set)

    def observe(self, observation: str) -> None:
        """Takes in what the environment answered to an action."""
        if match := _ARRIVED.search(observation):
            self.location = match["place"]
        if match := _CLOSED.search(observation):
            self.closed.add(match["closed"] or match["shut"])
        if match := _OPENED.search(observation):
            self.closed.discard(match["place"])
        if match := _ON.search(observation) or _IN.search(observation):
            self.closed.discard(match["place"])
            self.contents[match["place"]] = set(_LISTED.findall(match["things"]))
        if match := _PICKED.search(observation):
            self.holding = match["thing"]
            self.contents.get(match["place"], set()).discard(match["thing"])
        if match := _MOVED.search(observation):
            self.holding = None
            self.contents.setdefault(match["place"], set()).add(match["thing"])
        if match := _TREATED.search(observation):
            self._treat(match["thing"], RESULTS[match["verb"]])

    def _treat(self, thing: str, result: str) -> None:
        if result in ("hot", "cool"):
            self.states[thing] -= {"hot", "cool"}
        self.states[thing].add(result)

    def of_kind(self, kind: str) -> list[str]:
        """The room's receptacles of a kind."""
        return [name for name in self.receptacles if kind_of(name) == kind]

    def unseen(self) -> list[str]:
        """Receptacles whose contents have not been seen."""
        return [name for name in self.receptacles if name not in self.contents]

    def places_of(self, kind: str) -> dict[str, str]:
        """Known objects of a kind that lie somewhere: name -> receptacle."""
        return {
            thing: place
            for place, things in self.contents.items()
            for thing in sorted(things)
            if kind_of(thing) == kind
        }

    def is_treated(self, thing: str) -> bool:
        """Whether an object has had what the task asks for (true when it asks for nothing)."""
        return not self.task.treatment or RESULTS[self.task.treatment] in self.states[thing]
