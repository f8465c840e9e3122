"""The shared vocabulary of the project: what a span is. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple


class SpanKind(IntEnum):
    """What a stretch of a trajectory is. The integer is what span-id tensors hold.

    ====================  =====================================================  ==========
    kind                  what                                                   supervised
    ====================  =====================================================  ==========
    ``CONTEXT``           system prompt, task, few-shot, scaffolding             never
    ``REASON``            the agent's thoughts, with the marker it generates     yes
    ``ACT``               the agent's actions, marker and stop token included    yes
    ``OBSERVATION``       what the environment answers                           never
    ====================  =====================================================  ==========
    """

    CONTEXT = 0
    REASON = 1
    ACT = 2
    OBSERVATION = 3

    @property
    def label(self) -> str:
        """Lower-case name, as in JSON output and configs: ``reason``, ``act``, ..."""
        return self.name.lower()

    @classmethod
    def parse(cls, name: str | int | SpanKind) -> SpanKind:
        """``SpanKind`` from its label; raises ``ValueError`` naming the valid labels."""
        if isinstance(name, int):
            return cls(name)
        try:
            return cls[name.upper()]
        except KeyError:
            labels = ", ".join(k.label for k in cls)
            raise ValueError(f"a span kind is one of {labels}; got {name!r}") from None


#: The kinds an agent generates, hence the only ones a structured loss supervises.
AGENT_KINDS = frozenset({SpanKind.REASON, SpanKind.ACT})


class Span(NamedTuple):
    """Characters ``[start, end)`` of a text, all of one kind.

    Args:
        start: first character, inclusive.
        end: last character, exclusive; ``end > start``.
        kind: what the characters are.
        step: 1-based agent step the span belongs to; 0 before the first step (context).
        branch: the first token of this span is where the agent chooses between thinking and
            acting (the first token it generates in a turn, in a format where an action may
            come without a thought). See ``docs/method.md``.
    """

    start: int
    end: int
    kind: SpanKind
    step: int = 0
    branch: bool = False

    def shifted(self, by: int) -> Span:
        """The same span, ``by`` characters further on."""
        return Span(self.start + by, self.end + by, self.kind, self.step, self.branch)


#: A :class:`Span`, or its values as a plain tuple where many are made and few are kept.
SpanValues = tuple[int, int, SpanKind, int, bool]


def check_cover(spans: Sequence[Span], length: int) -> None:
    """Raises ``ValueError`` unless ``spans`` are ordered, non-empty and cover ``[0, length)``."""
    position = 0
    for span in spans:
        if span.start != position or span.end <= span.start:
            raise ValueError(
                "spans must be ordered, non-empty and without gap or overlap: expected one that "
                f"starts at character {position}, got [{span.start}, {span.end})"
            )
        position = span.end
    if position != length:
        raise ValueError(f"spans must cover all {length} characters, but they end at {position}")


def merge(spans: Iterable[SpanValues]) -> list[Span]:
    """Drops empty spans and joins neighbours of equal kind and step (a branch starts anew)."""
    out: list[Span] = []
    new = tuple.__new__  # Span(..) does the same with a call of Python more, for every span
    begin, reached, of_kind, of_step, marked = 0, 0, SpanKind.CONTEXT, 0, False  # being made
    for start, end, kind, step, branch in spans:
        if end <= start:
            continue
        if start == reached and kind == of_kind and step == of_step and not branch:
            reached = end
            continue
        if reached > begin:
            out.append(new(Span, (begin, reached, of_kind, of_step, marked)))
        begin, reached, of_kind, of_step, marked = start, end, kind, step, branch
    if reached > begin:
        out.append(Span(begin, reached, of_kind, of_step, marked))
    return out
