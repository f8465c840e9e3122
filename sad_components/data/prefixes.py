"""What two sequences begin alike with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def common_prefix(left: Sequence[Any], right: Sequence[Any]) -> int:
    """How many elements two sequences of one type (texts, lists of ids) begin alike with."""
    length = min(len(left), len(right))
    if left[:length] == right[:length]:  # the usual case, in one comparison
        return length
    return next(i for i in range(length) if left[i] != right[i])
