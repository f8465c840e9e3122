"""OpenAI Responses items: messages, reasoning items, function calls and their outputs.

Items become chat messages: a reasoning item is the ``reasoning_content`` of the agent's turn it
opens, a ``function_call`` a tool call of that turn (parallel calls share one turn), a
``function_call_output`` a tool message. Beside ``output``, ``instructions`` are the system's turn
and an ``input`` that is one text is the user's. The turns are then cut as OpenAI chat is. A
reasoning item without visible text (encrypted, or an empty summary) leaves nothing to learn; the
row notes how many there were.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sad_components.formats.base import Evidence
from sad_components.formats.openai_chat import OpenAIChat
from sad_components.formats.registry import register_format
from sad_components.trajectory import Message, Trajectory, TrajectoryError

_ITEM_KEYS = ("messages", "items", "input", "output")
_CALLS = ("function_call", "custom_tool_call")
_OUTPUTS = ("function_call_output", "custom_tool_call_output")


@register_format
class Responses(OpenAIChat):
    """Items of the OpenAI Responses API, as one list a row."""

    name = "responses"
    summary = "OpenAI Responses items: message, reasoning, function_call, function_call_output"

    def message_evidence(self, messages: Sequence[Message]) -> Evidence:
        return Evidence(0.0, "chat messages are no Responses items")

    def row_evidence(self, row: Mapping[str, Any]) -> Evidence:
        items = _items(row)
        typed = [i.get("type") for i in items]
        own = sum(t in (*_CALLS, *_OUTPUTS, "reasoning") for t in typed)
        messages = typed.count("message")
        why = f"{messages} message items and {own} reasoning or function_call items"
        return Evidence(1.0 if own or messages else 0.0, why)

    def row_to_trajectory(self, row: Mapping[str, Any]) -> Trajectory:
        turns = _Turns()
        opening = _opening(row)
        for item in opening:
            turns.add(item)
        for index, item in enumerate(_items(row)):
            try:
                turns.add(item)
            except TrajectoryError as error:
                raise TrajectoryError(f"item {index}: {error}") from None
        used = (*_ITEM_KEYS, *(["instructions"] if opening else []))
        rest = {k: v for k, v in row.items() if k not in used}
        trajectory = Trajectory.from_dict({**rest, "messages": turns.finish()})
        if turns.hidden:
            note = f"{turns.hidden} reasoning item(s) without visible text: nothing to learn there"
            trajectory.meta.setdefault("notes", []).append(note)
        return trajectory


class _Turns:
    """Collects items into chat messages."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.hidden = 0
        self._open: dict[str, Any] | None = None  # the agent's turn that is being put together

    def add(self, item: Mapping[str, Any]) -> None:
        kind = item.get("type") or "message"
        if kind == "reasoning":
            self._add_reasoning(item)
        elif kind in _CALLS:
            self._agent().setdefault("tool_calls", []).append(_call(item))
        elif kind in _OUTPUTS:
            self._close()
            self.messages.append(
                {
                    "role": "tool",
                    "content": _text(item.get("output")),
                    "tool_call_id": item.get("call_id"),
                }
            )
        elif kind == "message":
            self._add_message(item)
        else:
            raise TrajectoryError(
                f"a Responses item is a message, reasoning, function_call or its output; "
                f"got type {kind!r}"
            )

    def finish(self) -> list[dict[str, Any]]:
        self._close()
        return self.messages

    def _add_reasoning(self, item: Mapping[str, Any]) -> None:
        text = _text(item.get("content")) or _text(item.get("summary"), "\n\n")
        if not text:
            self.hidden += 1
            return
        if self._open and (self._open.get("content") or self._open.get("tool_calls")):
            self._close()
        turn = self._agent()
        turn["reasoning_content"] = "\n\n".join(filter(None, (turn.get("reasoning_content"), text)))

    def _add_message(self, item: Mapping[str, Any]) -> None:
        content = _text(item.get("content"))
        if item.get("role") != "assistant":
            self._close()
            self.messages.append({"role": item.get("role"), "content": content})
            return
        if self._open and (self._open.get("content") or self._open.get("tool_calls")):
            self._close()
        self._agent()["content"] = content

    def _agent(self) -> dict[str, Any]:
        if self._open is None:
            self._open = {"role": "assistant", "content": None}
        return self._open

    def _close(self) -> None:
        if self._open is not None:
            self.messages.append(self._open)
            self._open = None


def _items(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The row's items: ``input`` and ``output`` joined, or the one list that it has."""
    lists = [row[k] for k in _ITEM_KEYS if isinstance(row.get(k), list)]
    return [item for items in lists for item in items if isinstance(item, Mapping)]


def _opening(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What goes before the items of a response: instructions, and an input that is one text."""
    if not isinstance(row.get("output"), list):
        return []
    said = [("system", row.get("instructions")), ("user", row.get("input"))]
    return [{"role": role, "content": t} for role, t in said if isinstance(t, str) and t]


def _call(item: Mapping[str, Any]) -> dict[str, Any]:
    arguments = item.get("arguments", item.get("input", "{}"))
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {
        "id": item.get("call_id") or item.get("id"),
        "type": "function",
        "function": {"name": str(item.get("name", "")), "arguments": arguments},
    }


def _text(content: Any, separator: str = "") -> str:
    """Visible text of a content: a string, or the text of its parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return "" if content is None else json.dumps(content, ensure_ascii=False)
    parts = [p if isinstance(p, str) else _part_text(p) for p in content]
    return separator.join(p for p in parts if p)


def _part_text(part: Any) -> str:
    if not isinstance(part, Mapping):
        return ""
    text = part.get("text") or part.get("refusal")
    return text if isinstance(text, str) else ""
