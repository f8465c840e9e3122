"""The shop over a local product file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sad_components.envs.protocol import require_task, slice_tasks
from sad_components.envs.webshop.catalog import (
    SHIPPED,
    Catalog,
    Goal,
    Product,
    load_goals,
    load_products,
)
from sad_components.envs.webshop.reward import purchase_reward
from sad_components.envs.webshop.shop import BACK, BUY, NEXT, PREVIOUS, Page, Place, Receipt, Shop
from sad_components.trajectory import Message

_PER_PAGE = 10
_SUBPAGES = ("Description", "Features")


class WebShopEnvironment(Shop):
    """Search over a product file with BM25, pages, options, and WebShop's reward for a purchase.

    Args:
        products: JSONL file of products, or ``shipped``.
        goals: JSONL file of instructions, or ``shipped``.
        max_steps: actions after which an episode ends without a purchase.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a row that is no product or instruction, or an instruction for a product that
            the file lacks.
    """

    name = "webshop"

    def __init__(
        self, products: str | Path = SHIPPED, goals: str | Path = SHIPPED, max_steps: int = 15
    ) -> None:
        super().__init__(max_steps)
        self._catalog = Catalog(load_products(products))
        self._goals = {goal.id: goal for goal in load_goals(goals)}
        for goal in self._goals.values():
            if goal.asin not in self._catalog.by_asin:
                raise ValueError(f"instruction {goal.id!r} asks for {goal.asin}, no product here")
        self._goal: Goal | None = None

    def tasks(self, count: int | None = None, seed: int = 0) -> list[str]:
        return slice_tasks(list(self._goals), count, seed, self.name)

    def _start(self, task: str) -> str:
        require_task(task, self._goals, self.name)
        self._goal = self._goals[task]
        return self._enter(Place()).observation

    def _show(self, place: Place) -> Page:
        if place.kind == "search":
            return Page(f"Instruction: {self._wanted.instruction}\n[Search]", can_search=True)
        if place.kind == "results":
            return self._results(place)
        product = self._catalog.by_asin[place.asin]
        if place.kind == "subpage":
            text = product.description
            if place.subpage == "Features":
                text = "\n".join(product.features)
            return Page(f"[{BACK}]\n[{PREVIOUS}]\n{text or 'None'}", (BACK, PREVIOUS))
        return _item(product)

    def _results(self, place: Place) -> Page:
        found = self._catalog.search(place.query)
        first = (place.number - 1) * _PER_PAGE
        shown = found[first : first + _PER_PAGE]
        more = first + _PER_PAGE < len(found)
        buttons = (BACK, *((PREVIOUS,) if place.number > 1 else ()), *((NEXT,) if more else ()))
        lines = [f"[{BACK}]", f"Page {place.number} (Total results: {len(found)})"]
        lines += [f"[{label}]" for label in buttons[1:]]
        for product in shown:
            lines += [f"[{product.asin}]", product.title, _dollars(product.price)]
        return Page("\n".join(lines), buttons, tuple(p.asin for p in shown))

    def _buy(self, place: Place) -> Receipt:
        product, goal = self._catalog.by_asin[place.asin], self._wanted
        wanted = self._catalog.by_asin[goal.asin]
        parts = purchase_reward(product, dict(place.options), goal, wanted)
        reward = parts.pop("reward")
        return Receipt(f"Your score (min 0.0, max 1.0): {reward:.4g}", reward, parts)

    def expert_turn(self) -> Message | None:
        """Searches the product that the instruction was written for, and buys it."""
        thought, action = self._next()
        return Message("assistant", f"Thought: {thought}\nAction: {action}")

    def _next(self) -> tuple[str, str]:
        place, page, goal = self._place, self._page, self._wanted
        if page.can_search:
            title = self._catalog.by_asin[goal.asin].title
            return "I search for it.", f"search[{title}]"
        if goal.asin in page.products:
            return "This is the one.", f"click[{goal.asin}]"
        if place.kind == "item" and place.asin == goal.asin:
            chosen = {value.lower() for _, value in place.options}
            for _, value in page.options:
                if value.lower() in map(str.lower, goal.options) and value.lower() not in chosen:
                    return "The option matters.", f"click[{value}]"
            return "It is all as it should be.", f"click[{BUY}]"
        if NEXT in page.buttons:
            return "It may be on the next page.", f"click[{NEXT}]"
        return "It is not here.", f"click[{BACK}]"

    @property
    def task_sentence(self) -> str:
        return self._wanted.instruction

    def describe(self) -> dict[str, Any]:
        return {"price_upper": self._wanted.price_upper}

    @property
    def _wanted(self) -> Goal:
        assert self._goal is not None, "reset comes first"
        return self._goal


def _item(product: Product) -> Page:
    lines = [f"[{BACK}]", f"[{PREVIOUS}]"]
    for name, values in product.options.items():
        lines.append(f"{name} " + "".join(f"[{value}]" for value in values))
    lines += [product.title, f"Price: {_dollars(product.price)}"]
    lines += [f"[{label}]" for label in (*_SUBPAGES, BUY)]
    options = tuple((name, value) for name, values in product.options.items() for value in values)
    return Page("\n".join(lines), (BACK, PREVIOUS, *_SUBPAGES, BUY), options=options)


def _dollars(price: float) -> str:
    return f"${price:,.2f}"
