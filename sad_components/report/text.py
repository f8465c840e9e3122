"""Text from files that nobody vouches for, made fit to be shown."""

from __future__ import annotations

#: Control characters as their pictures; line breaks and tabs stay.
_SHOWN: dict[int, int | str] = {
    code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"
}
_SHOWN[0x7F] = 0x2421
#: Pieces of characters and C1 controls: nothing to show, and the former cannot even be written.
_SHOWN |= dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], 0xFFFD)
#: Marks that would turn the direction of the text around them, or hide in it.
_HIDDEN = (0x061C, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF)
_TABLE: dict[int, int | str] = {
    **_SHOWN,
    **{code: f"⟨U+{code:04X}⟩" for code in _HIDDEN},
    **dict.fromkeys((0x2028, 0x2029), "\n"),
}


def clean(text: str) -> str:
    """``text`` without characters that act on what shows it: these become visible.

    >>> clean("a\\x1b[31m\\x00b")
    'a␛[31m␀b'
    """
    return text.translate(_TABLE)


def shorten(text: str, limit: int) -> str:
    """At most ``limit`` characters of ``text``, and how many were left out."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… [{len(text) - limit:,} more characters]"


def one_line(value: object, limit: int = 48) -> str:
    """A name for tables and legends: clean, blanks folded, at most ``limit`` characters.

    >>> one_line("runs/\\n tiny")
    'runs/ tiny'
    """
    text = " ".join(clean(str(value)[: 4 * limit]).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
