"""SWE-agent: the ``trajectory`` steps of a run, or its ``history``.

A step has ``response`` (what the model wrote), ``thought``, ``action`` and ``observation``; it
becomes an agent turn and the environment's answer. The response is REASON up to the end of its
thought, ACT from there (the fenced command); a response without command is ACT. History entries
are chat messages with ``thought`` and ``action`` beside their content, and tool calls in newer
runs. Demonstrations (``is_demo``) are CONTEXT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sad_components.formats._chat import ChatFormat, Piece
from sad_components.formats.base import Dialect, Evidence
from sad_components.formats.registry import register_format
from sad_components.spans import SpanKind
from sad_components.trajectory import ROLES, Message, Trajectory, TrajectoryError

_LIST_KEYS = ("messages", "trajectory", "history")


@register_format
class SweAgent(ChatFormat):
    """Steps with response, thought, action, observation; or history entries with roles."""

    name = "sweagent"
    summary = "SWE-agent trajectory steps (response/thought/action/observation) or history"
    dialect = Dialect(act="```", stop="", thought_optional=True)

    def row_evidence(self, row: Mapping[str, Any]) -> Evidence:
        entries = _entries(row)
        steps = sum(_is_step(e) for e in entries)
        turns = sum("thought" in e and "action" in e and "role" in e for e in entries)
        why = f"{steps} steps, {turns} history entries with thought and action"
        return Evidence(1.0 if steps or turns else 0.0, why)

    def row_to_trajectory(self, row: Mapping[str, Any]) -> Trajectory:
        messages: list[dict[str, Any]] = []
        for index, entry in enumerate(_entries(row)):
            if _is_step(entry):
                messages.extend(_step_messages(entry))
            elif entry.get("role") in ROLES:
                messages.append(_history_message(entry))
            else:
                raise TrajectoryError(
                    f"entry {index} is neither a step nor a history entry; its keys are "
                    f"{sorted(map(str, entry))}"
                )
        rest = {k: v for k, v in row.items() if k not in _LIST_KEYS}
        return Trajectory.from_dict({**rest, "messages": messages})

    def cut_turn(self, message: Message) -> list[Piece]:
        text = message.text
        if message.tool_calls:
            return [Piece(len(text), SpanKind.REASON)]
        cut = _action_start(text, message.extra.get("thought"))
        return [Piece(cut, SpanKind.REASON), Piece(len(text), SpanKind.ACT)]

    def is_filler(self, message: Message) -> bool:
        return False


def _action_start(text: str, thought: Any) -> int:
    """Where the command starts: behind the thought, else at the last fenced block."""
    if isinstance(thought, str) and thought.strip():
        at = text.find(thought.strip())
        if at >= 0 and text[at + len(thought.strip()) :].strip():
            return at + len(thought.strip()) + _leading_space(text, at + len(thought.strip()))
    closing = text.rfind("```")
    opening = text.rfind("```", 0, closing) if closing > 0 else -1
    return max(opening, 0)


def _leading_space(text: str, start: int) -> int:
    rest = text[start:]
    return len(rest) - len(rest.lstrip())


def _is_step(entry: Mapping[str, Any]) -> bool:
    return "role" not in entry and "observation" in entry and "action" in entry


def _entries(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The history of a row if it has one (the task stands in it), else its steps."""
    lists = [row[k] for k in _LIST_KEYS if isinstance(row.get(k), list)]
    lists = [[e for e in entries if isinstance(e, Mapping)] for entries in lists]
    with_roles = [e for e in lists if any("role" in entry for entry in e)]
    return (with_roles or lists or [[]])[0]


def _step_messages(step: Mapping[str, Any]) -> list[dict[str, Any]]:
    thought, action = str(step.get("thought") or ""), str(step.get("action") or "")
    content = step.get("response")
    if not isinstance(content, str) or not content:
        content = f"{thought}```\n{action.strip()}\n```" if action else thought
    agent = {"role": "assistant", "content": content, "thought": thought, "action": action}
    observation = step.get("observation")
    if observation is None:
        return [agent]
    return [agent, {"role": "user", "content": str(observation)}]


def _history_message(entry: Mapping[str, Any]) -> dict[str, Any]:
    message = dict(entry)
    ids = message.pop("tool_call_ids", None)
    if isinstance(ids, list) and ids:
        message["tool_call_id"] = ids[0]
    return message
