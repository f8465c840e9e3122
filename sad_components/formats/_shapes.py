"""Other names for chat messages: what people's rows call what OpenAI's chat calls otherwise.

ShareGPT's ``conversations`` of ``from`` and ``value``, the older ``function_call``, content parts
that hold thinking, tool calls or tool results, and ``reasoning`` beside the content. Rows that are
in OpenAI's shape already are left as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_LIST_KEYS = ("messages", "conversations", "conversation")
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "ipython": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
_PARTS = ("thinking", "redacted_thinking", "tool_use", "tool_result")


def chat_row(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with its chat in OpenAI's shape under ``messages``; the row itself if it is so."""
    key = chat_key(row)
    if key is None or (key == "messages" and not any(_is_foreign(m) for m in row[key])):
        return row
    messages = [turn for message in row[key] for turn in _turns(message)]
    return {**{k: v for k, v in row.items() if k != key}, "messages": messages}


def chat_key(row: Mapping[str, Any]) -> str | None:
    """The key under which the row holds a chat, or None."""
    return next((k for k in _LIST_KEYS if _is_chat(row.get(k))), None)


def _is_chat(value: Any) -> bool:
    """Whether a value is a list of objects that name their speaker."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, Mapping) and ("role" in m or "from" in m) for m in value)
    )


def _is_foreign(message: Mapping[str, Any]) -> bool:
    return (
        "from" in message
        or (isinstance(message.get("role"), str) and message["role"] in _ROLES)
        or isinstance(message.get("function_call"), Mapping)
        or (isinstance(message.get("reasoning"), str) and not message.get("reasoning_content"))
        or any(part.get("type") in _PARTS for part in _parts(message.get("content")))
    )


def _parts(content: Any) -> list[Mapping[str, Any]]:
    return [p for p in content if isinstance(p, Mapping)] if isinstance(content, list) else []


def _turns(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The message in OpenAI's shape; tool results inside a content are turns of their own."""
    if not _is_foreign(message):
        yield dict(message)
        return
    turn = dict(message)
    speaker = turn.pop("from", None) if "role" not in turn else turn["role"]
    turn["role"] = _ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker
    if "content" not in turn and "value" in turn:
        turn["content"] = turn.pop("value")
    calls = []
    if turn.get("function_call") and isinstance(turn["function_call"], Mapping):
        calls.append(_tool_call(turn.pop("function_call")))
    if speaker == "function_call" and (call := _json_call(turn.get("content"))):
        turn["content"] = None
        calls.append(call)
    if not turn.get("reasoning_content") and isinstance(turn.get("reasoning"), str):
        turn["reasoning_content"] = turn.pop("reasoning")
    yield from _with_parts(turn, calls)


def _with_parts(turn: dict[str, Any], calls: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    parts = _parts(turn.get("content"))
    thinking = [p.get("thinking") for p in parts if p.get("type") == "thinking"]
    if thinking and not turn.get("reasoning_content"):
        turn["reasoning_content"] = "\n\n".join(t for t in thinking if isinstance(t, str))
    for part in parts:
        if part.get("type") == "tool_use":
            calls.append(_tool_call({**part, "arguments": part.get("input")}))
        elif part.get("type") == "tool_result":
            yield _tool_result(part)
    if parts:
        turn["content"] = [p for p in parts if p.get("type") not in _PARTS]
    known = turn.get("tool_calls") or []
    if calls and isinstance(known, list):  # else the message is refused for them
        turn["tool_calls"] = [*known, *calls]
    if turn.get("content") or turn["role"] == "assistant" or not parts:
        yield turn


def _tool_call(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments or {}, ensure_ascii=False)
    named = {"name": str(function.get("name", "")), "arguments": arguments}
    call: dict[str, Any] = {"type": "function", "function": named}
    return {"id": function["id"], **call} if function.get("id") else call


def _json_call(content: Any) -> dict[str, Any] | None:
    """ShareGPT's ``function_call`` turn: its value is the call as JSON."""
    try:
        found = json.loads(content) if isinstance(content, str) else None
    except ValueError:
        return None
    return _tool_call(found) if isinstance(found, dict) and "name" in found else None


def _tool_result(part: Mapping[str, Any]) -> dict[str, Any]:
    content = part.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(p.get("text") or "" for p in _parts(content))
    result = {"role": "tool", "content": content if isinstance(content, str) else None}
    return {**result, "tool_call_id": part.get("tool_use_id")}
