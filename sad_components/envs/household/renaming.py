"""Games under exchanged names, so that a model must read where things are and what they are called.

Where things usually lie is soon known by heart, and most things have the number 1; a small model
then "finds" an egg on every countertop and takes "egg 1" where egg 2 lies. With the names and
numbers of objects exchanged, only the text says what lies where. Receptacles keep both: which
there are is told at the beginning.
"""

from __future__ import annotations

import random
import re

from sad_components.envs.household.thoughts import plural, with_article
from sad_components.envs.household.world import LAMP, OBJECTS, ROOMS

_KINDS = tuple(sorted(OBJECTS))
#: What has a number, but keeps its name.
_FIXED = tuple(sorted({LAMP, *(kind for room in ROOMS.values() for kind in room)}))
_DIGITS = "123456789"


class Renaming:
    """A one-to-one exchange of object kinds, and of each kind's numbers 1 to 9, in any text.

    Args:
        seed: which exchange; None leaves every name as it is.
    """

    def __init__(self, seed: str | None = None) -> None:
        self._seed = seed
        rng = random.Random(f"names:{seed}")
        names = list(_KINDS)
        rng.shuffle(names)
        self._shown = {**dict(zip(_KINDS, names, strict=True)), **{kind: kind for kind in _FIXED}}
        self._true = {new: old for old, new in self._shown.items()}
        #: by the true kind
        self._digits = {kind: "".join(rng.sample(_DIGITS, 9)) for kind in (*_KINDS, LAMP)}

    def show(self, text: str) -> str:
        """The game's text under the new names."""
        if self._seed is None:
            return text
        return _ANY_FORM.sub(lambda match: self._other(match, back=False), text)

    def restore(self, text: str) -> str:
        """The inverse of :meth:`show`."""
        if self._seed is None:
            return text
        return _ANY_FORM.sub(lambda match: self._other(match, back=True), text)

    def describe(self) -> dict[str, str]:
        """For a record's ``meta``: ``names``, the seed; nothing where names are their own."""
        return {} if self._seed is None else {"names": self._seed}

    def _other(self, match: re.Match[str], back: bool) -> str:
        if match["numbered"]:
            old = match["numbered"]
            new = self._true[old] if back else self._shown[old]
            digits = self._digits.get(new if back else old, _DIGITS)
            exchange = str.maketrans(digits, _DIGITS) if back else str.maketrans(_DIGITS, digits)
            number = match["number"]
            return f"{new} {number.translate(exchange) if len(number) == 1 else number}"
        found = match[0]
        form, kind = _FORM_OF[found.lower()]
        new = _forms((self._true if back else self._shown)[kind])[form]
        return new[0].upper() + new[1:] if found[0].isupper() else new


def _forms(kind: str) -> tuple[str, str, str]:
    return with_article(kind), plural(kind), kind


_FORM_OF = {form: (i, kind) for kind in _KINDS for i, form in enumerate(_forms(kind))}
#: A kind with its number, or an object kind in one of its forms; the game itself writes "a egg 1",
#: which keeps its article.
_ANY_FORM = re.compile(
    rf"\b(?P<numbered>{'|'.join(_KINDS + _FIXED)}) (?P<number>\d+)\b"
    rf"|\b(?:{'|'.join(sorted(map(re.escape, _FORM_OF), key=len, reverse=True))})\b(?! \d)",
    re.IGNORECASE,
)
