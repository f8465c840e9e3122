"""Answers compared as HotPotQA's official evaluation script (v1) compares them."""

from __future__ import annotations

import re
import string
from collections import Counter

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
#: Answers that are right or wrong as a whole.
_CLOSED = frozenset({"yes", "no", "noanswer"})


def normalize_answer(answer: str) -> str:
    """Lower case without punctuation and articles, blanks folded, in this order.

    >>> normalize_answer("The  U.S. Navy, a fleet")
    'us navy fleet'
    """
    bare = answer.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(answer: str, gold: str) -> bool:
    """Whether two answers are the same once normalised."""
    return normalize_answer(answer) == normalize_answer(gold)


def answer_f1(answer: str, gold: str) -> float:
    """F1 over the words of two normalised answers, in [0, 1].

    0 where one of them is yes, no or noanswer and the other is not the same; 0, too, where either
    is empty.

    >>> round(answer_f1("Chief of Protocol", "the chief protocol officer"), 3)
    0.667
    """
    ours, theirs = normalize_answer(answer), normalize_answer(gold)
    if ours != theirs and (ours in _CLOSED or theirs in _CLOSED):
        return 0.0
    our_words, their_words = ours.split(), theirs.split()
    common = (Counter(our_words) & Counter(their_words)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(our_words), common / len(their_words)
    return 2 * precision * recall / (precision + recall)
