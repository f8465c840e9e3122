"""Keys of a nested config mapping, checked like those that the recipes check themselves."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

T = TypeVar("T")


def from_mapping(options: type[T], given: Any, where: str) -> T:
    """A dataclass from a mapping of its fields.

    Args:
        options: the dataclass.
        given: the mapping, an instance of the class, or None for all defaults.
        where: the mapping's name in the config, for messages.

    Raises:
        ValueError: no mapping, a key that the class has not (the nearest is named), or one that
            it needs and does not get.
    """
    if isinstance(given, options):
        return given
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} is a mapping of keys; got {given!r:.120}")
    known = [field.name for field in fields(options)]  # type: ignore[arg-type]
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"{where} takes no {key!r}{hint}. It takes: {', '.join(known)}")
    try:
        return options(**given)
    except TypeError as error:
        raise ValueError(f"{where} cannot be read: {error}") from None
