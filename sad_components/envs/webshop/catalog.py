"""Products and instructions from JSONL, and the search over the products."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from sad_components.trajectory import iter_json_lines

SHIPPED = "shipped"
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Product:
    """Something to buy.

    Args:
        asin: its number.
        title: as listed.
        price: in dollars; the lower end where a range is given.
        options: name of an option -> its values.
        attributes: properties that instructions may ask for.
        features: bullet points.
        description: a text.
        category: ``›`` between its levels.
        query: the search under which the product is filed.
    """

    asin: str
    title: str
    price: float
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    attributes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    description: str = ""
    category: str = ""
    query: str = ""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Product:
        """Raises ``ValueError`` when asin, title or price is missing or of a wrong kind."""
        missing = [key for key in ("asin", "title", "price") if row.get(key) in (None, "")]
        if missing:
            raise ValueError(f"a product has asin, title and price; no {missing[0]!r} here")
        numbers = _NUMBER.findall(str(row["price"]).replace(",", ""))
        if not numbers:
            raise ValueError(f"a price is a number of dollars; got {row['price']!r}")
        return cls(
            asin=str(row["asin"]),
            title=str(row["title"]),
            price=min(map(float, numbers)),
            options={str(k): tuple(map(str, v)) for k, v in (row.get("options") or {}).items()},
            attributes=tuple(row.get("attributes") or ()),
            features=tuple(row.get("features") or ()),
            description=row.get("description") or "",
            category=row.get("category") or "",
            query=row.get("query") or "",
        )

    @property
    def text(self) -> str:
        """Everything that a search reads."""
        return " ".join([self.title, *self.attributes, *self.features, self.description])


@dataclass(frozen=True)
class Goal:
    """What an instruction asks for.

    Args:
        id: unique.
        instruction: in words.
        asin: the product that it was written for.
        attributes: properties that it asks for.
        options: values of options that it asks for.
        price_upper: most dollars it may cost.
    """

    id: str
    instruction: str
    asin: str
    attributes: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    price_upper: float = 1_000_000.0

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Goal:
        """Raises ``ValueError`` when id, instruction or asin is missing."""
        missing = [key for key in ("id", "instruction", "asin") if not row.get(key)]
        if missing:
            raise ValueError(f"an instruction has id, instruction and asin; no {missing[0]!r} here")
        options = row.get("options") or ()
        return cls(
            id=str(row["id"]),
            instruction=row["instruction"],
            asin=row["asin"],
            attributes=tuple(row.get("attributes") or ()),
            options=tuple(options.values() if isinstance(options, Mapping) else options),
            price_upper=float(row.get("price_upper") or 1_000_000.0),
        )


def load_products(source: str | Path = SHIPPED) -> list[Product]:
    """The products of a JSONL file; ``shipped`` for the 30 that the package carries.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a row that is no product (its line is named), or none.
    """
    return _load(source, "products.jsonl", Product.from_row, lambda p: p.asin)


def load_goals(source: str | Path = SHIPPED) -> list[Goal]:
    """The instructions of a JSONL file; ``shipped`` for the 10 that the package carries.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a row that is no instruction (its line is named), or none.
    """
    return _load(source, "goals.jsonl", Goal.from_row, lambda g: g.id)


def _load(source: str | Path, shipped: str, make: Any, key: Any) -> list[Any]:
    path = Path(str(files(__package__))) / shipped if source == SHIPPED else Path(source)
    found: dict[str, Any] = {}
    for number, row in iter_json_lines(path.expanduser()):
        try:
            item = make(row)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        found.setdefault(key(item), item)
    if not found:
        raise ValueError(f"{path} is empty")
    return list(found.values())


class Catalog:
    """Products with a BM25 index over their texts.

    Args:
        products: at least one.
    """

    def __init__(self, products: Sequence[Product]) -> None:
        from rank_bm25 import BM25Okapi

        self.by_asin = {p.asin: p for p in products}
        self._products = list(products)
        self._index = BM25Okapi([words(p.text) or [""] for p in products])

    def search(self, query: str, limit: int = 50) -> list[Product]:
        """Products with a word of the query, best first; equals in the order of the file."""
        wanted = words(query)
        scores = self._index.get_scores(wanted)
        hits = [
            (-score, n)
            for n, score in enumerate(scores)
            if score > 0 or set(wanted) & set(words(self._products[n].text))
        ]
        return [self._products[n] for _, n in sorted(hits)[:limit]]


def words(text: str) -> list[str]:
    """Lower-case words of a text."""
    return _WORD.findall(text.lower())
