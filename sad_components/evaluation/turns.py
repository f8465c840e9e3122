"""An agent's turn, read and written by the one declaration of its transcript format."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sad_components.formats import get_format
from sad_components.spans import SpanKind
from sad_components.trajectory import Message

_BEFORE = Message("user", "task")


@dataclass(frozen=True)
class ParsedTurn:
    """What a turn says.

    Args:
        reasoning: the thought, without its marker; empty without one.
        action: the first action, without its marker; empty if there is none.
        parsed: whether the turn has an action with its marker (else it is a parse failure).
    """

    reasoning: str
    action: str
    parsed: bool


class TurnReader:
    """Reads and writes turns of one format, and knows where a turn ends while it is written.

    Args:
        format: name of a format of chat turns whose dialect has an action marker.

    Raises:
        ValueError: no such format, or one without an action marker.
    """

    def __init__(self, format: str) -> None:
        self.format = get_format(format)
        dialect = self.format.dialect
        if not dialect.act:
            raise ValueError(
                f"an environment's format marks actions; format {format!r} does not: use react or "
                "tags"
            )
        self.dialect = dialect
        self._act, self._reason = _marker(dialect.act), _marker(dialect.reason)
        self._opens = re.compile(rf"(?m)^[ \t]*{self._act.pattern}")

    def read(self, text: str) -> ParsedTurn:
        """The thought and the action of a turn; an observation that it makes up is left out."""
        spans = self.format.content_spans([_BEFORE, Message("assistant", text)])[1]
        parts = {
            kind: [text[s.start : s.end] for s in spans if s.kind is kind]
            for kind in (SpanKind.REASON, SpanKind.ACT)
        }
        reasoning = " ".join(_bare(part, self._reason) for part in parts[SpanKind.REASON])
        actions = [part for part in parts[SpanKind.ACT] if self._act.match(part.lstrip())]
        if not actions:
            return ParsedTurn(reasoning.strip(), "", False)
        action = _bare(actions[0], self._act)
        return ParsedTurn(reasoning.strip(), action, bool(action))

    def write(self, thought: str | None, action: str) -> str:
        """A turn with this thought (None: without one) and action."""
        line = _wrapped(self.dialect.act, action)
        return f"{_wrapped(self.dialect.reason, thought)}\n{line}" if thought else line

    def action_so_far(self, text: str) -> str | None:
        """What of an unfinished turn follows its action marker; None before the marker."""
        match = self._opens.search(text)
        return None if match is None else text[match.end() :]

    def end(self, text: str, stop: str) -> int | None:
        """Where an unfinished turn is over: behind the action's stop, or before a made-up answer.

        Args:
            text: what has been generated.
            stop: the text that ends an action (plain style); empty when a stop token does.
        """
        marker = self.dialect.observation
        made_up = text.find(f"\n{marker}") if marker else -1
        if made_up >= 0:
            return made_up + 1
        match = self._opens.search(text) if stop else None
        if match is None:
            return None
        rest = text[match.end() :]
        begin = match.end() + len(rest) - len(rest.lstrip())
        at = text.find(stop, begin)
        return at + len(stop) if at >= 0 else None


def _marker(marker: str) -> re.Pattern[str]:
    """``Thought:`` also numbered, ``<think>`` as it is."""
    if marker.endswith(":"):
        return re.compile(rf"{re.escape(marker[:-1])}(?:[ \t]+\d+)?[ \t]*:")
    return re.compile(re.escape(marker))


def _bare(part: str, marker: re.Pattern[str]) -> str:
    """A section without its marker and, for a tag, without the tag that closes it."""
    part = part.strip()
    match = marker.match(part)
    if match is None:
        return part
    rest = part[match.end() :]
    if match[0].startswith("<"):
        rest = rest.split(f"</{match[0][1:]}", 1)[0]
    return rest.strip()


def _wrapped(marker: str, text: str) -> str:
    if marker.startswith("<"):
        return f"{marker}{text}</{marker[1:]}"
    return f"{marker} {text}".strip()
