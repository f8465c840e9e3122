"""OpenAI chat: ``tool_calls`` (parallel ones too), with or without ``reasoning_content``.

A tool call is ACT; text beside a call is REASON (the agent explains what it does), text without a
call is ACT (it speaks to the user). ``reasoning_content``, and ``<think>..</think>`` inside the
content, are REASON. The renderer places reasoning and calls, which are not part of the content.
"""

from __future__ import annotations

from collections.abc import Sequence

from sad_components.formats._chat import ChatFormat, Piece
from sad_components.formats.base import Dialect, Evidence
from sad_components.formats.registry import register_format
from sad_components.formats.tags import cut_tags
from sad_components.trajectory import Message


@register_format
class OpenAIChat(ChatFormat):
    """Chat messages whose agent acts through ``tool_calls`` or plain answers."""

    name = "openai"
    summary = "OpenAI chat messages with tool_calls and reasoning_content"
    dialect = Dialect(stop="", thought_optional=True)

    def message_evidence(self, messages: Sequence[Message]) -> Evidence:
        calls = sum(len(m.tool_calls or ()) for m in messages)
        results = sum(m.role in ("tool", "function") for m in messages)
        reasoning = sum(bool(m.reasoning_content) for m in messages)
        if calls or results or reasoning:
            why = f"{calls} tool calls, {results} tool results, {reasoning} reasoning contents"
            return Evidence(0.95, why)
        if any(m.role == "assistant" for m in messages):
            return Evidence(0.05, "chat turns without tool calls or markers")
        return Evidence(0.0, "no assistant turn")

    def is_filler(self, message: Message) -> bool:
        return False

    def cut_turn(self, message: Message) -> list[Piece]:
        return cut_tags(message.text, has_call=bool(message.tool_calls))
