"""Where a chat template puts the texts of a conversation, found by rendering stand-ins for them.

The template is applied to the conversation with each text replaced by a unique stand-in; putting
the texts back must give exactly what the template makes of the real conversation. Then the place
of every text is known without searching, and so is what the template wrote around it.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sad_components.data.chat_template import template_json
from sad_components.trajectory import Message, TrajectoryError

_OPEN, _CLOSE = "\ue000", "\ue001"  # private use: no template writes them


class Slot(NamedTuple):
    """One text of one turn.

    Args:
        turn: index of the message.
        part: ``reasoning``, ``content``, ``call`` (arguments of a tool call) or ``label`` (names
            and ids, which a template may leave out).
        text: what the template is given there (of a call: its arguments as JSON).
    """

    turn: int
    part: str
    text: str


class Part(NamedTuple):
    """Characters ``[start, end)`` of the rendering that are a slot's text."""

    slot: Slot
    start: int
    end: int


@dataclass(frozen=True)
class Skeleton:
    """A conversation with stand-ins for its texts.

    Args:
        records: what the template is given.
        slots: what each stand-in stands for.
    """

    records: list[dict[str, Any]]
    slots: list[Slot]

    @classmethod
    def of(cls, records: Sequence[dict[str, Any]]) -> Skeleton:
        """The skeleton of a conversation of :func:`template_record`; blank texts stay."""
        slots: list[Slot] = []
        return cls([_stand_ins(turn, record, slots) for turn, record in enumerate(records)], slots)

    @property
    def shape(self) -> str:
        """Equal for conversations that differ in their texts only."""
        return repr(self.records)


class Filled(NamedTuple):
    """A rendering in which every text has its place.

    Args:
        text: the real rendering.
        parts: in order of appearance, without labels.
        edges: as many offsets as asked for, from the skeleton's rendering to ``text``.
    """

    text: str
    parts: list[Part]
    edges: list[int]


class Pattern:
    """A rendered skeleton: what the template wrote between the stand-ins, and where they are.

    Args:
        text: the skeleton as the template rendered it.
        slots: what each stand-in stands for.
        edges: offsets into ``text`` to keep track of, none inside a stand-in, in ascending order.
    """

    def __init__(self, text: str, slots: Sequence[Slot], edges: Sequence[int] = ()) -> None:
        self.shown: list[int] = []  # slots by index, in order of appearance
        self._gaps: list[str] = []  # before each stand-in, and behind the last one
        self._edges: list[tuple[int, int]] = []  # stand-ins before an edge, and how far behind
        ends = [0]
        for match in _STAND_IN.finditer(text):
            index = int(match["slot"])
            start, end = _unquoted(text, *match.span(), slots[index])
            self.shown.append(index)
            self._gaps.append(text[ends[-1] : start])
            ends.append(end)
        self._gaps.append(text[ends[-1] :])
        for edge in edges:
            before = bisect_right(ends, edge) - 1
            self._edges.append((before, edge - ends[before]))

    def fill(self, slots: Sequence[Slot], text: str) -> Filled | None:
        """Puts texts back; None unless that gives exactly ``text``.

        Args:
            slots: the texts, as they are; if need be with outer blanks stripped, as templates do.
            text: what the template made of the real conversation.
        """
        for strip in (False, True):
            pieces, parts, ends = [], [], [0]
            at = 0
            for gap, index in zip(self._gaps, self.shown):
                slot = slots[index]
                value = slot.text.strip() if strip else slot.text
                pieces += gap, value
                start = at + len(gap)
                at = start + len(value)
                ends.append(at)
                if slot.part != "label":
                    parts.append(Part(slot, start, at))
            pieces.append(self._gaps[-1])
            if "".join(pieces) == text:
                return Filled(text, parts, [ends[before] + by for before, by in self._edges])
        return None

    def shows_each_once(self, slots: Sequence[Slot], turn: int | None = None) -> bool:
        """Whether every text (of ``turn``, if given) is there once, labels aside."""
        shown = Counter(self.shown)
        return all(
            shown[index] == 1
            for index, slot in enumerate(slots)
            if slot.part != "label" and turn in (None, slot.turn)
        )


def search_turn(
    text: str, start: int, message: Message, turn: int, control: Sequence[str]
) -> list[Part]:
    """A turn's texts in what the template made of it, by searching for them in their order.

    Args:
        text: rendering that ends with the turn.
        start: where the turn's share begins (behind the generation prompt).
        message: the turn.
        turn: its index.
        control: texts of control tokens.

    Raises:
        TrajectoryError: one of them is not there: the template left it out or changed it; or one
            holds the text of a control token.
    """
    parts: list[Part] = []
    position = start
    for slot in _texts(message, turn):
        _refuse_control(slot, control)
        find = text.find if message.role == "assistant" else text.rfind
        found = _find_part(find, slot, position)
        if found is None:
            raise TrajectoryError(
                f"the chat template changed or left out the {_WHAT[slot.part]} of turn {turn} "
                f"({message.role}): expected {slot.text[:60]!r} in "
                f"{text[position : position + 80]!r}; use a chat_template that shows it, or "
                "style: plain"
            )
        parts += found
        position = found[-1].end
    return parts


def search_history(
    text: str, messages: Sequence[Message], control: Sequence[str]
) -> list[tuple[int, int]]:
    """Where the texts of earlier turns lie, as far as they are still shown.

    Raises:
        TrajectoryError: one holds the text of a control token.
    """
    ranges: list[tuple[int, int]] = []
    position = 0
    for turn, message in enumerate(messages):
        for slot in _texts(message, turn):
            _refuse_control(slot, control)
            if found := _find_part(text.find, slot, position):
                ranges += [(p.start, p.end) for p in found]
                position = found[-1].end
    return ranges


def template_record(message: Message) -> dict[str, Any]:
    """The dict a chat template reads: role, text content, tool calls, reasoning."""
    record: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.tool_calls:
        record["tool_calls"] = [_call_record(call) for call in message.tool_calls]
    for key in ("name", "tool_call_id", "reasoning_content"):
        if getattr(message, key) is not None:
            record[key] = getattr(message, key)
    return record


def call_text(call: dict[str, Any]) -> str:
    """The arguments of a tool call of a :func:`template_record`, as templates write them."""
    arguments = call["function"].get("arguments", "")
    return arguments if isinstance(arguments, str) else template_json(arguments)


_TEXT_KEYS = {
    "reasoning_content": "reasoning",
    "content": "content",
    "name": "label",
    "tool_call_id": "label",
}
_WHAT = {"reasoning": "reasoning", "content": "content", "call": "tool calls"}
_STAND_IN = re.compile(f"{_OPEN}(?P<slot>\\d+){_CLOSE}")


def _refuse_control(slot: Slot, control: Sequence[str]) -> None:
    """Searching cannot tell the text of a control token in a content from the token itself."""
    if any(token in slot.text for token in control):
        raise TrajectoryError(
            f"the {_WHAT[slot.part]} of turn {slot.turn} holds the text of a control token, and "
            "the chat template changes what turns say, so that the two cannot be told apart; use "
            "a chat_template that shows turns as they are, or style: plain"
        )


def _texts(message: Message, turn: int) -> list[Slot]:
    """The turn's texts that a template must show, in the order in which they are generated."""
    record = template_record(message)
    texts = [("reasoning", record.get("reasoning_content") or ""), ("content", record["content"])]
    texts += [("call", call_text(call)) for call in record.get("tool_calls", ())]
    return [Slot(turn, part, text) for part, text in texts if text.strip()]


def _find_part(find: Callable[..., int], slot: Slot, position: int) -> list[Part] | None:
    """The slot's text, whole or stripped; of a call that is no JSON there, the values in it."""
    for text in (slot.text, slot.text.strip()):
        if (start := find(text, position)) >= 0:
            return [Part(slot, start, start + len(text))]
    parts = []
    for spellings in _values(slot.text) if slot.part == "call" else ():
        found = [(start, len(text)) for text in spellings if (start := find(text, position)) >= 0]
        if not found:
            return None
        start, length = min(found)
        position = start + length
        parts.append(Part(slot, start, position))
    return parts or None


def _values(arguments: str) -> Iterator[tuple[str, ...]]:
    """The values in a JSON text, blank ones aside, each as JSON and Python spell it."""
    try:
        values = [json.loads(arguments)]
    except json.JSONDecodeError:
        return
    while values:
        value = values.pop()
        if isinstance(value, dict | list):
            values += reversed(list(value.values() if isinstance(value, dict) else value))
        elif not isinstance(value, str):
            yield json.dumps(value), str(value)
        elif value.strip():
            yield (value,)


def _stand_ins(turn: int, record: dict[str, Any], slots: list[Slot]) -> dict[str, Any]:
    """The record with stand-ins for its texts, which go to ``slots``."""
    out = dict(record)
    for key, text in record.items():
        if key in _TEXT_KEYS:
            _put(out, key, Slot(turn, _TEXT_KEYS[key], text), slots)
    if "tool_calls" in record:
        out["tool_calls"] = [_call_stand_ins(turn, call, slots) for call in record["tool_calls"]]
    return out


def _call_stand_ins(turn: int, call: dict[str, Any], slots: list[Slot]) -> dict[str, Any]:
    out = {**call, "function": dict(call["function"])}
    _put(out, "id", Slot(turn, "label", call.get("id")), slots)
    _put(out["function"], "name", Slot(turn, "label", call["function"].get("name")), slots)
    _put(out["function"], "arguments", Slot(turn, "call", call_text(call)), slots)
    return out


def _put(holder: dict[str, Any], key: str, slot: Slot, slots: list[Slot]) -> None:
    """Replaces a text by its stand-in; what is blank, or no text, stays."""
    if isinstance(slot.text, str) and slot.text.strip():
        holder[key] = f"{_OPEN}{len(slots)}{_CLOSE}"
        slots.append(slot)


def _unquoted(pattern: str, start: int, end: int, slot: Slot) -> tuple[int, int]:
    """Takes in the quotes that ``tojson`` writes around a stand-in for a JSON object."""
    quoted = slot.part == "call" and pattern[start - 1 : start] == '"' == pattern[end : end + 1]
    return (start - 1, end + 1) if quoted else (start, end)


def _call_record(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call with its arguments as an object when they are JSON (templates differ)."""
    flat = {key: call[key] for key in ("name", "arguments") if key in call}
    function = dict(call.get("function") or flat)
    if isinstance(function.get("arguments"), str):
        try:
            function["arguments"] = json.loads(function["arguments"])
        except json.JSONDecodeError:
            pass  # not JSON: the template gets the agent's text as it is
    return {**call, "function": function}
