"""ATIF, the Agent Trajectory Interchange Format (versions 1.0 to 1.8; PyPI ``atif`` has models).

Each agent step is one turn: ``reasoning_content`` and the message beside tool calls are REASON,
tool calls ACT, a message without calls ACT, its observation results OBSERVATION. Steps copied from
another trajectory (``is_copied_context``) and steps that no model wrote (``llm_call_count: 0``)
are not learnt. Embedded sub-agents are other trajectories: noted, not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sad_components.formats.base import Evidence
from sad_components.formats.openai_chat import OpenAIChat
from sad_components.formats.registry import register_format
from sad_components.trajectory import Message, Trajectory, TrajectoryError

_ROLE = {"system": "system", "user": "user", "agent": "assistant"}


@register_format
class Atif(OpenAIChat):
    """ATIF documents, one a row."""

    name = "atif"
    summary = "ATIF documents: schema_version, agent, steps with tool_calls and observation"

    def message_evidence(self, messages: Sequence[Message]) -> Evidence:
        return Evidence(0.0, "chat messages are no ATIF document")

    def row_evidence(self, row: Mapping[str, Any]) -> Evidence:
        version = row.get("schema_version")
        if isinstance(version, str) and version.upper().startswith("ATIF"):
            return Evidence(1.0, f"schema_version {version!r}")
        sources = [s.get("source") for s in _steps(row)]
        fits = (
            bool(sources)
            and "agent" in row
            and all(isinstance(s, str) and s in _ROLE for s in sources)
        )
        return Evidence(0.9 if fits else 0.0, f"{len(sources)} steps with a source")

    def row_to_trajectory(self, row: Mapping[str, Any]) -> Trajectory:
        messages: list[dict[str, Any]] = []
        for step in _steps(row):
            if step.get("source") not in list(_ROLE):
                raise TrajectoryError(
                    f"step {step.get('step_id')}: an ATIF step's source is one of "
                    f"{', '.join(_ROLE)}; got {step.get('source')!r}"
                )
            messages.extend(_step_messages(step))
        meta = {k: row[k] for k in ("schema_version", "session_id", "extra") if row.get(k)}
        agent = row.get("agent")
        trajectory = Trajectory.from_dict(
            {
                "messages": messages,
                "id": str(row.get("trajectory_id") or row.get("session_id") or ""),
                "teacher": agent.get("model_name") if isinstance(agent, Mapping) else None,
                "meta": meta,
            }
        )
        if row.get("subagent_trajectories"):
            note = f"{len(row['subagent_trajectories'])} embedded sub-agent trajectories not read"
            trajectory.meta.setdefault("notes", []).append(note)
        return trajectory


def _steps(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    steps = row.get("steps")
    return [s for s in steps if isinstance(s, Mapping)] if isinstance(steps, list) else []


def _step_messages(step: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The turn of a step, then one message for each result of its observation."""
    message: dict[str, Any] = {"role": _ROLE[step["source"]], "content": step.get("message")}
    if message["role"] == "assistant":
        if step.get("reasoning_content"):
            message["reasoning_content"] = step["reasoning_content"]
        calls = [_call(c) for c in step.get("tool_calls") or [] if isinstance(c, Mapping)]
        if calls:
            message["tool_calls"] = calls
        if step.get("is_copied_context") or step.get("llm_call_count") == 0:
            message["weight"] = 0
    observation = step.get("observation")
    results = observation.get("results") if isinstance(observation, Mapping) else None
    return [message, *(_result(r) for r in results or [] if isinstance(r, Mapping))]


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(call.get("arguments") or {}, ensure_ascii=False)
    function = {"name": str(call.get("function_name", "")), "arguments": arguments}
    return {"id": call.get("tool_call_id"), "type": "function", "function": function}


def _result(result: Mapping[str, Any]) -> dict[str, Any]:
    call_id = result.get("source_call_id")
    message = {"role": "tool" if call_id else "environment", "content": result.get("content")}
    return {**message, "tool_call_id": call_id} if call_id else message
