"""What a purchase is worth, as WebShop defines it (arXiv 2207.01206, section 3.1; its goal.py).

``r = r_type * (attributes met + options met + [price <= limit]) / (attributes + options + 1)``

Where we differ: WebShop compares the *nouns* of two titles, found by a tagger; here all words but
stop words and numbers count. And its list of colours is replaced by a list of our own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from rapidfuzz import fuzz, utils

from sad_components.envs.webshop.catalog import Goal, Product, words

_ALIKE = 85
#: Options that have to be the very same, not only alike.
_EXACT = frozenset({"size"})
_STOP_WORDS = frozenset(
    [
        *("a", "an", "and", "as", "at", "by", "for", "from", "in", "is", "it", "of", "on", "or"),
        *("per", "so", "the", "to", "up", "with", "without", "our", "my", "set", "pack", "pcs"),
        "piece",
    ]
)
_COLOURS = (
    *("black", "white", "grey", "gray", "silver", "gold", "red", "pink", "rose", "orange"),
    *("yellow", "green", "olive", "teal", "turquoise", "blue", "navy", "purple", "violet"),
    *("lilac", "brown", "beige", "cream", "ivory", "khaki", "copper", "bronze", "multicolor"),
)


def purchase_reward(
    product: Product, chosen: Mapping[str, str], goal: Goal, wanted: Product
) -> dict[str, float]:
    """The reward of buying a product, and its parts.

    Args:
        product: what was bought.
        chosen: option name -> chosen value.
        goal: the instruction.
        wanted: the product that the instruction was written for; decides the type.

    Returns:
        ``reward`` and ``type`` in [0, 1]; ``attributes`` and ``options`` as counts of matches;
        ``price`` 1 if within the limit, else 0.
    """
    kind = _type_match(product, wanted)
    attributes = sum(_has(product, attribute) for attribute in goal.attributes)
    options = _option_matches(product, chosen, [normalize_colour(o) for o in goal.options])
    price = float(product.price <= goal.price_upper)
    of = len(goal.attributes) + len(goal.options) + 1
    return {
        "reward": kind * (attributes + options + price) / of,
        "type": kind,
        "attributes": float(attributes),
        "options": float(options),
        "price": price,
    }


def normalize_colour(value: str) -> str:
    """The first known colour in a value, lower case; the value itself where there is none."""
    low = value.lower()
    return next((colour for colour in _COLOURS if colour in low), low)


def _type_match(product: Product, wanted: Product) -> float:
    same_query = bool(wanted.query) and product.query == wanted.query
    levels = [{part.strip() for part in p.category.split("›")} - {""} for p in (product, wanted)]
    same_category = len(levels[0] & levels[1]) >= 2
    theirs = _names(wanted.title)
    overlap = len(_names(product.title) & theirs) / len(theirs) if theirs else 0.2
    if overlap == 0:
        return 0.0
    if overlap < 0.1:
        return 0.1
    return 1.0 if same_query or same_category or overlap > 0.2 else 0.5


def _names(title: str) -> set[str]:
    return {w for w in words(title) if w not in _STOP_WORDS and not w[0].isdigit()}


def _has(product: Product, attribute: str) -> bool:
    return any(_alike(own, attribute) for own in product.attributes) or _mentions(
        product, attribute.lower()
    )


def _option_matches(product: Product, chosen: Mapping[str, str], goal: Collection[str]) -> int:
    """Chosen values that the goal asks for, or that the product's texts mention.

    At most as many as it asks for (WebShop has no such bound), so that no reward exceeds 1.
    """
    matches = 0
    for name, value in chosen.items():
        own = normalize_colour(value)
        if name.lower() in _EXACT:
            same = own in goal
        else:
            same = any(_alike(wanted, own) for wanted in goal)
        matches += same or _mentions(product, own)
    return min(matches, len(goal))


def _mentions(product: Product, text: str) -> bool:
    places = (product.title, " ".join(product.features), product.description)
    return any(text in place.lower() for place in places)


def _alike(left: str, right: str) -> bool:
    score = fuzz.token_set_ratio(left, right, processor=utils.default_process)
    return round(score) > _ALIKE
