"""Objects under each other's names, so that a model must read where things are.

Where things usually lie is soon known by heart; a small model then "finds" an egg on every
countertop. With the names of objects exchanged, only the observation says what lies where.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from sad_components.envs.household.thoughts import plural, with_article
from sad_components.envs.household.world import OBJECTS

_KINDS = tuple(sorted(OBJECTS))


class Renaming:
    """A one-to-one exchange of object kinds, in any text about them.

    Args:
        seed: which exchange; None leaves every name as it is.
    """

    def __init__(self, seed: str | None = None) -> None:
        self._seed = seed
        names = list(_KINDS)
        if seed is not None:
            random.Random(f"names:{seed}").shuffle(names)
        self._shown = dict(zip(_KINDS, names, strict=True))
        self._true = {new: old for old, new in self._shown.items()}

    def show(self, text: str) -> str:
        """The game's text under the new names."""
        return text if self._seed is None else _replace(text, self._shown)

    def restore(self, text: str) -> str:
        """The inverse of :meth:`show`."""
        return text if self._seed is None else _replace(text, self._true)

    def describe(self) -> dict[str, str]:
        """For a record's ``meta``: ``names``, the seed; nothing where names are their own."""
        return {} if self._seed is None else {"names": self._seed}


def _forms(kind: str) -> tuple[str, str, str]:
    return with_article(kind), plural(kind), kind


_FORM_OF = {form: (i, kind) for kind in _KINDS for i, form in enumerate(_forms(kind))}
#: A kind in one of its forms; the game itself writes "a egg 1", which keeps its article.
_ANY_FORM = re.compile(
    rf"\b(?:{'|'.join(sorted(map(re.escape, _FORM_OF), key=len, reverse=True))})\b(?! \d)"
    rf"|\b(?:{'|'.join(_KINDS)})\b",
    re.IGNORECASE,
)


def _replace(text: str, names: Mapping[str, str]) -> str:
    def other(match: re.Match[str]) -> str:
        found = match[0]
        form, kind = _FORM_OF[found.lower()]
        new = _forms(names[kind])[form]
        return new[0].upper() + new[1:] if found[0].isupper() else new

    return _ANY_FORM.sub(other, text)
