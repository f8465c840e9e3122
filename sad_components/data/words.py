"""A byte-level BPE word by word: what it made of a word before need not be computed again.

Such a tokenizer cuts text into words by a regular expression, then merges inside each word. For
ASCII text the expression is easily said in Python's own terms, and transcripts repeat their words.
Of other text, what stands between two spaces and is not ASCII is left whole: no word goes on
across a space that follows something else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Characters of the words that are kept; beyond that the table starts anew.
MAX_CHARACTERS = 1_000_000
_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
#: GPT-2's words, in ASCII text.
_GPT2 = re.compile(
    rf"{_CONTRACTIONS}| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII
)
#: The same in a text that was cut around each digit first.
_GPT2_DIGITS = re.compile(
    rf"{_CONTRACTIONS}| ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+|\s+(?![^\s0-9])|\s+", re.ASCII
)
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: The ``Split`` of later families (Qwen 3 cuts as Qwen 2 does): digits by three, or each apart.
SPLITS = {"llama3": _SPLIT % "{1,3}", "qwen2": _SPLIT % ""}
_IN_ASCII = {r"\p{L}\p{N}": "A-Za-z0-9", r"\p{L}": "[A-Za-z]", r"\p{N}": "[0-9]"}
_SPLIT_IN_ASCII = {
    split: re.compile(re.sub(r"(\\p\{\w\})+", lambda m: _IN_ASCII[m[0]], split), re.ASCII)
    for split in SPLITS.values()
}
#: Where a word is sure to end.
_BREAK = re.compile(r"(?<=\S)(?= )")


class WordTable:
    """Token ids of a text by its words.

    Args:
        tokenizer: encodes the words that are not in the table.
        pattern: finds the words of ASCII text, as the tokenizer does.
        cut_out: tokens that the tokenizer cuts out of a text before it looks for words.
    """

    def __init__(
        self, tokenizer: Tokenizer, pattern: re.Pattern[str], cut_out: Sequence[str] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._find = pattern.findall
        self._cuts = re.compile("|".join(map(re.escape, cut_out))).search if cut_out else None
        self._ids: dict[str, list[int]] = {}
        self._characters = 0

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> WordTable | None:
        """The table of a byte-level BPE.

        None unless it cuts words as GPT-2, SmolLM2, Llama 3, Qwen 2 or Qwen 3 do.
        """
        described = json.loads(tokenizer.to_str())
        step = described["pre_tokenizer"] or {}
        pattern = _pattern(step.get("pretokenizers", [step]))
        changes = described["normalizer"] or {"type": "NFC"}  # which leaves ASCII text as it is
        if pattern is None or changes["type"] != "NFC" or described["model"]["dropout"]:
            return None
        added = described["added_tokens"]
        return cls(tokenizer, pattern, [t["content"] for t in added if not t["special"]])

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, in which control tokens are just text."""
        if self._cuts and self._cuts(text):
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        words = self._find(text) if text.isascii() else list(self._words(text))
        try:
            return list(chain.from_iterable(map(self._ids.__getitem__, words)))
        except KeyError:
            self._learn(words)
        return list(chain.from_iterable(map(self._ids.__getitem__, words)))

    def _words(self, text: str) -> Iterator[str]:
        """Words, and whole stretches between two spaces that are not ASCII."""
        for is_ascii, parts in groupby(_BREAK.split(text), str.isascii):
            together = list(parts)
            yield from self._find("".join(together)) if is_ascii else together

    def _learn(self, words: list[str]) -> None:
        if self._characters > MAX_CHARACTERS:
            self._ids, self._characters = {}, 0
        new = [word for word in dict.fromkeys(words) if word not in self._ids]
        encodings = self._tokenizer.encode_batch_fast(new, add_special_tokens=False)
        self._ids.update((word, encoding.ids) for word, encoding in zip(new, encodings))
        self._characters += sum(map(len, new))


def _pattern(steps: Sequence[dict[str, Any]]) -> re.Pattern[str] | None:
    """How the steps of a pre-tokenizer cut ASCII text into words, if that is known."""
    *before, last = steps or [{}]
    if last.get("type") != "ByteLevel" or last["add_prefix_space"] or len(before) > 1:
        return None
    if not before:
        return _GPT2 if last["use_regex"] else None
    [first] = before
    if first["type"] == "Digits" and first["individual_digits"]:
        return _GPT2_DIGITS if last["use_regex"] else None
    if first["type"] != "Split" or first["behavior"] != "Isolated" or first["invert"]:
        return None
    return None if last["use_regex"] else _SPLIT_IN_ASCII.get(first["pattern"].get("Regex"))
