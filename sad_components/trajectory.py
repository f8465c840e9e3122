"""The canonical trajectory record: chat messages as people have them, plus what we know of them.

Standard library only. A record is plain JSON, so that it round-trips through JSONL and through
``datasets`` without a schema of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "environment")


class TrajectoryError(ValueError):
    """A record that is not a trajectory; says where it was found and what is wrong."""


@dataclass
class Message:
    """One chat turn.

    Args:
        role: one of ``ROLES``. ``assistant`` is the agent; ``tool``, ``function`` and
            ``environment`` are observations; ``user`` is the task first and observations later
            (the format decides).
        content: text, or OpenAI's typed parts (``[{"type": "text", "text": ..}]``), or None.
        tool_calls: OpenAI's tool calls, if the agent made some.
        name: author or tool name.
        tool_call_id: which call a tool message answers.
        reasoning_content: reasoning kept apart from the content (OpenAI-compatible servers).
        weight: 0 makes the turn CONTEXT (not learnt, e.g. a wrong action); None or 1 is normal.
        acceptable: on held-out assistant turns, the actions that count as right in this state.
        token_ids: the tokens the policy sampled for this turn, if it was a sampled one.
        logprobs: their log-probabilities in nats, as long as ``token_ids``.
        tokenizer_hash: of the tokenizer that ``token_ids`` belong to.
        extra: every other key of the source message, kept as found.
    """

    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    weight: float | None = None
    acceptable: list[str] | None = None
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    tokenizer_hash: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The content as one string: text parts joined, other parts left out."""
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        return "".join(p.get("text") or "" for p in self.content if isinstance(p, dict))

    @property
    def is_learnt(self) -> bool:
        """Whether an agent turn may be supervised: ``weight`` is not 0, and it is no example."""
        return self.weight != 0 and not self.extra.get("is_demo")

    @classmethod
    def from_dict(cls, record: Any) -> Message:
        """Raises ``TrajectoryError`` when the record is no message."""
        if not isinstance(record, dict):
            raise TrajectoryError(f"a message is a JSON object; got {type(record).__name__}")
        role = record.get("role")
        if role not in ROLES:
            raise TrajectoryError(f"a message's role is one of {', '.join(ROLES)}; got {role!r}")
        content = record.get("content")
        if isinstance(content, list):
            bad = [p for p in content if not isinstance(p, dict)]
            if bad:
                raise TrajectoryError(f"content parts are JSON objects; got {bad[0]!r}")
            bad = [p["text"] for p in content if not isinstance(p.get("text"), str | None)]
            if bad:
                raise TrajectoryError(f"a content part's text is a string; got {bad[0]!r:.80}")
        elif content is not None and not isinstance(content, str):
            raise TrajectoryError(
                f"content is a string, a list of parts or null; got {type(content).__name__}"
            )
        reasoning = record.get("reasoning_content")
        if not isinstance(reasoning, str | None):
            raise TrajectoryError(f"reasoning_content is a string; got {reasoning!r:.80}")
        weight = record.get("weight")
        if weight is not None and (isinstance(weight, bool) or not isinstance(weight, int | float)):
            raise TrajectoryError(f"weight is a number, 0 for 'not learnt'; got {weight!r}")
        calls = record.get("tool_calls")
        if calls is not None and (
            not isinstance(calls, list) or not all(isinstance(c, dict) for c in calls)
        ):
            raise TrajectoryError("tool_calls is a list of JSON objects; got " + repr(calls)[:80])
        for call in calls or ():
            if not isinstance(call.get("function"), dict | None):
                raise TrajectoryError(f"a tool call's function is a JSON object; got {call!r:.80}")
        token_ids, logprobs = record.get("token_ids"), record.get("logprobs")
        for name, value in (("token_ids", token_ids), ("logprobs", logprobs)):
            if not isinstance(value, list | None):
                raise TrajectoryError(f"{name} is a list of numbers; got {value!r:.80}")
        if token_ids is not None and logprobs is not None and len(token_ids) != len(logprobs):
            raise TrajectoryError(
                f"token_ids and logprobs are equally long; got {len(token_ids)} and {len(logprobs)}"
            )
        known = {k: without_nulls(record[k]) for k in _MESSAGE_KEYS if record.get(k) is not None}
        if not isinstance(record.get("extra"), dict | None):
            raise TrajectoryError(f"'extra' is a dict; got {record['extra']!r:.80}")
        extra = without_nulls(dict(record.get("extra") or {}))
        own = (*_MESSAGE_KEYS, "extra")
        extra.update(without_nulls({k: v for k, v in record.items() if k not in own}))
        return cls(**known, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; keys that hold nothing are left out, ``extra`` keys stand beside the rest."""
        out = {k: getattr(self, k) for k in _MESSAGE_KEYS if getattr(self, k) is not None}
        out.setdefault("content", None)
        out.update({k: v for k, v in self.extra.items() if k not in out})
        return out


_MESSAGE_KEYS = tuple(f.name for f in fields(Message) if f.name != "extra")


@dataclass
class Trajectory:
    """One episode: messages in order, and what is known of the episode.

    Args:
        messages: the chat, at least one message.
        id: unique within its file; a number becomes text.
        env: environment name (``household``, ``hotpotqa``, ..).
        task: the task sentence.
        success: whether the episode was won; None when not known.
        score: reward, unit as the environment defines it.
        teacher: who wrote the agent's turns.
        format: name of the transcript format (``sad_components.formats``); None to detect it.
        meta: anything else, plain JSON.
    """

    messages: list[Message]
    id: str = ""
    env: str | None = None
    task: str | None = None
    success: bool | None = None
    score: float | None = None
    teacher: str | None = None
    format: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, record: Any) -> Trajectory:
        """From a JSON object.

        Raises:
            TrajectoryError: not an object, no message, or a message that is none (its index is
                named).
        """
        if not isinstance(record, dict):
            raise TrajectoryError(f"a trajectory is a JSON object; got {type(record).__name__}")
        raw = record.get("messages")
        if not isinstance(raw, list) or not raw:
            raise TrajectoryError(
                "a trajectory has a non-empty list under 'messages'; got "
                + (f"keys {sorted(map(str, record))}" if raw is None else repr(raw)[:80])
            )
        messages = []
        for index, item in enumerate(raw):
            try:
                messages.append(Message.from_dict(item))
            except TrajectoryError as error:
                raise TrajectoryError(f"message {index}: {error}") from None
        known = {k: record[k] for k in _TRAJECTORY_KEYS if record.get(k) is not None}
        if "id" in known:
            known["id"] = str(known["id"])
        for key, kind in (("meta", dict), ("format", str)):
            if not isinstance(record.get(key), kind | None):
                raise TrajectoryError(f"{key!r} is a {kind.__name__}; got {record[key]!r:.80}")
        meta = without_nulls(dict(record.get("meta") or {}))
        own = (*_TRAJECTORY_KEYS, "messages", "meta")
        meta.update(without_nulls({k: v for k, v in record.items() if k not in own}))
        return cls(messages=messages, meta=meta, **known)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, empty keys left out."""
        out: dict[str, Any] = {
            k: getattr(self, k) for k in _TRAJECTORY_KEYS if getattr(self, k) not in (None, "")
        }
        out["messages"] = [m.to_dict() for m in self.messages]
        if self.meta:
            out["meta"] = self.meta
        return out


_TRAJECTORY_KEYS = tuple(f.name for f in fields(Trajectory) if f.name not in ("messages", "meta"))


def without_nulls(value: Any) -> Any:
    """``value`` without the null keys of its objects, at any depth.

    ``datasets`` gives every row of a column the keys of all rows, null where a row has none. The
    arguments of a tool call stay as they are: there a null is the agent's own.
    """
    if isinstance(value, dict):
        return {
            k: v if k == "arguments" else without_nulls(v)
            for k, v in value.items()
            if v is not None
        }
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def iter_json_lines(path: str | os.PathLike) -> Iterator[tuple[int, Any]]:
    """Yields ``(line number, object)``, 1-based; blank lines are passed over.

    Raises:
        FileNotFoundError: no such file.
        TrajectoryError: a line is no JSON; the message names file and line.
    """
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # a mark that Windows puts there
            try:
                yield number, json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                problem = f"not UTF-8: {error.reason} at byte {error.start + 1}"
            except json.JSONDecodeError as error:
                problem = f"not JSON: {error.msg} at column {error.colno}"
            except RecursionError:
                problem = "not JSON that can be read: nested too deeply"
            else:
                continue
            raise TrajectoryError(
                f"{path}:{number}: every line is one JSON object, but this one is {problem}; "
                "fix or remove the line"
            )


def read_jsonl(path: str | os.PathLike) -> Iterator[Trajectory]:
    """Streams the canonical records of a JSONL file.

    Raises:
        FileNotFoundError: no such file.
        TrajectoryError: malformed line or record (file and line named), or no record at all.
    """
    found = False
    for number, record in iter_json_lines(path):
        try:
            trajectory = Trajectory.from_dict(record)
        except TrajectoryError as error:
            raise TrajectoryError(f"{path}:{number}: {error}") from None
        found = True
        yield trajectory
    if not found:
        raise TrajectoryError(f"{path} holds no trajectory: the file is empty")


def write_jsonl(path: str | os.PathLike, trajectories: Iterable[Trajectory]) -> int:
    """Writes canonical JSONL (replacing the file only when all is written); returns the count."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    count = 0
    with open(aside, "w", encoding="utf-8") as handle:
        for trajectory in trajectories:
            handle.write(_json_line(trajectory.to_dict()) + "\n")
            count += 1
    os.replace(aside, path)
    return count


def _json_line(record: dict[str, Any]) -> str:
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:  # half a character, as cut-off texts have: UTF-8 has none
        return json.dumps(record)
    return line
