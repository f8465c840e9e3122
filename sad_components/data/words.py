"""A byte-level BPE word by word: what it made of a word before need not be computed again.

Such a tokenizer cuts text into words by a regular expression, then merges inside each word. For
ASCII text the expression is easily said in Python's own terms, and transcripts repeat their words.
"""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import TYPE_CHECKING

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


class WordTable:
    """Token ids of ASCII text by its words.

    Args:
        tokenizer: encodes the words that are not in the table.
        pattern: finds the words of ASCII text, as the tokenizer does.
    """

    def __init__(self, tokenizer: Tokenizer, pattern: re.Pattern[str]) -> None:
        self._tokenizer = tokenizer
        self._find = pattern.findall
        self._ids: dict[str, list[int]] = {}
        self._characters = 0

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> WordTable | None:
        """The table of a byte-level BPE; None unless it cuts words as GPT-2 or SmolLM2 do."""
        described = json.loads(tokenizer.to_str())
        step = described["pre_tokenizer"] or {}
        steps = step.get("pretokenizers", [step])
        pattern = _GPT2
        if steps and steps[0].get("type") == "Digits" and steps[0]["individual_digits"]:
            pattern, steps = _GPT2_DIGITS, steps[1:]
        if [step.get("type") for step in steps] != ["ByteLevel"] or not steps[0]["use_regex"]:
            return None
        if described["normalizer"] or steps[0]["add_prefix_space"] or described["model"]["dropout"]:
            return None
        if not all(token["special"] for token in described["added_tokens"]):
            return None  # such a token is cut out of the text before its words are
        return cls(tokenizer, pattern)

    def encode(self, text: str) -> list[int]:
        """Token ids of an ASCII text, in which control tokens are just text."""
        words = self._find(text)
        try:
            return list(chain.from_iterable(map(self._ids.__getitem__, words)))
        except KeyError:
            self._learn(words)
        return list(chain.from_iterable(map(self._ids.__getitem__, words)))

    def _learn(self, words: list[str]) -> None:
        if self._characters > MAX_CHARACTERS:
            self._ids, self._characters = {}, 0
        new = [word for word in dict.fromkeys(words) if word not in self._ids]
        encodings = self._tokenizer.encode_batch_fast(new, add_special_tokens=False)
        self._ids.update((word, encoding.ids) for word, encoding in zip(new, encodings))
        self._characters += sum(map(len, new))
