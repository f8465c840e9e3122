"""Walking through a shop: what search and click do, whoever shows the pages."""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple

from sad_components.envs.protocol import Environment, Outcome

BACK, NEXT, PREVIOUS, BUY = "Back to Search", "Next >", "< Prev", "Buy Now"
SUBPAGES = ("Description", "Features", "Reviews", "Attributes")

_ACTION = re.compile(r"(?P<verb>search|click)\[(?P<text>.*)\]", re.IGNORECASE | re.DOTALL)
_INVALID = "Invalid action!"


@dataclass(frozen=True)
class Place:
    """Where the agent is.

    Args:
        kind: ``search``, ``results``, ``item`` or ``subpage``.
        query: the last search.
        number: page of the results, from 1.
        asin: the product looked at.
        options: chosen values by option name, as pairs.
        subpage: one of ``SUBPAGES``.
    """

    kind: str = "search"
    query: str = ""
    number: int = 1
    asin: str = ""
    options: tuple[tuple[str, str], ...] = ()
    subpage: str = ""


@dataclass(frozen=True)
class Page:
    """What a place looks like.

    Args:
        text: what the agent reads; what can be clicked stands in brackets.
        buttons: labels that can be clicked, products and options left out.
        products: asins that can be clicked.
        options: (option name, value) pairs that can be clicked.
        can_search: there is a search bar.
    """

    text: str
    buttons: tuple[str, ...] = ()
    products: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    can_search: bool = False


class Receipt(NamedTuple):
    """What a purchase brings: the page's text, the reward in [0, 1], and its parts."""

    text: str
    reward: float
    parts: dict[str, float]


class Shop(Environment):
    """Search and click; a subclass shows pages and sells.

    ``won`` is a reward of 1. ``click`` does not mind case.

    Args:
        max_steps: actions after which an episode ends without a purchase.
    """

    instructions = (
        "Shop online for what the instruction asks. Reply with one thought and one action.\n"
        "Actions: search[words], click[text in brackets on the page]."
    )

    def __init__(self, max_steps: int = 15) -> None:
        super().__init__(max_steps)
        self._place, self._page = Place(), Page("")

    @abstractmethod
    def _show(self, place: Place) -> Page:
        """The page of a place."""

    @abstractmethod
    def _buy(self, place: Place) -> Receipt:
        """Buys the product of the place with its options."""

    def _enter(self, place: Place) -> Outcome:
        self._page = self._show(place)
        self._place = place
        return Outcome(self._page.text)

    def _act(self, action: str) -> Outcome:
        match = _ACTION.fullmatch(action.strip())
        if match is None:
            return Outcome(_INVALID, valid=False)
        text = match["text"].strip()
        if match["verb"].lower() == "search":
            if not self._page.can_search or not text:
                return Outcome(_INVALID, valid=False)
            return self._enter(Place("results", query=text))
        return self._click(text)

    def _click(self, text: str) -> Outcome:
        place, page, low = self._place, self._page, text.lower()
        for asin in page.products:
            if asin.lower() == low:
                return self._enter(replace(place, kind="item", asin=asin, options=()))
        for name, value in page.options:
            if value.lower() == low:
                chosen = {**dict(place.options), name: value}
                self._enter(replace(place, options=tuple(chosen.items())))
                return Outcome(f"You have clicked {value}.")
        label = next((button for button in page.buttons if button.lower() == low), None)
        if label is None:
            return Outcome(_INVALID, valid=False)
        if label == BUY:
            receipt = self._buy(place)
            won = receipt.reward >= 1.0
            info = {"scores": receipt.parts} if receipt.parts else {}
            return Outcome(receipt.text, receipt.reward, done=True, won=won, info=info)
        return self._enter(_behind(label, place))

    def admissible(self) -> list[str] | None:
        """Everything that can be clicked; with a search bar, a search for the instruction."""
        page = self._page
        searches = [f"search[{self.task_sentence}]"] if page.can_search else []
        clicks = [*page.products, *(value for _, value in page.options), *page.buttons]
        return [*searches, *(f"click[{text}]" for text in clicks if text != "Search")]


def _behind(label: str, place: Place) -> Place:
    """Where a button leads."""
    if label == BACK:
        return Place()
    if label == NEXT:
        return replace(place, number=place.number + 1)
    if label == PREVIOUS:
        if place.kind == "subpage":
            return replace(place, kind="item", subpage="")
        if place.kind == "item":
            return replace(place, kind="results", asin="", options=())
        return replace(place, number=place.number - 1)
    return replace(place, kind="subpage", subpage=label)
