"""Which trajectories are learnt from: success, reward, length, duplicates."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from sad_components.data.transform import TokenizedTrajectory
from sad_components.formats.registry import segment
from sad_components.trajectory import Message, Trajectory

#: Why a repeated row is dropped.
DUPLICATE = "a duplicate of an earlier row"


@dataclass(frozen=True)
class Filters:
    """What a row must be to be kept; each condition is off when null.

    Args:
        success: keep only episodes recorded as won (true) or as lost (false).
        min_reward: least ``score`` (or ``reward``), in the environment's unit.
        min_steps, max_steps: agent steps of the episode as written.
        min_tokens, max_tokens: tokens of the row before it is cut to ``max_seq_len``.
        duplicates: ``drop`` keeps the first of equal conversations; ``keep`` keeps all.

    Raises:
        ValueError: a value of the wrong type, or a minimum above its maximum.
    """

    success: bool | None = None
    min_reward: float | None = None
    min_steps: int | None = None
    max_steps: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    duplicates: str = "keep"

    def __post_init__(self) -> None:
        if not isinstance(self.success, bool | None):
            raise ValueError(f"success is true, false or null; got {self.success!r}")
        for name in ("min_reward", "min_steps", "max_steps", "min_tokens", "max_tokens"):
            value = getattr(self, name)
            allowed = int | float if name == "min_reward" else int
            if value is not None and (isinstance(value, bool) or not isinstance(value, allowed)):
                raise ValueError(f"{name} is a number; got {value!r}")
        for unit in ("steps", "tokens"):
            least, most = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if least is not None and most is not None and least > most:
                raise ValueError(f"min_{unit} is at most max_{unit}; got {least} and {most}")
        if self.duplicates not in ("drop", "keep"):
            raise ValueError(f"duplicates is drop or keep; got {self.duplicates!r}")

    def refuse(self, trajectory: Trajectory) -> str | None:
        """Why the episode is dropped, or None to keep it.

        Raises:
            ValueError: the episode cannot be cut into steps.
        """
        return (
            self._refuse_success(trajectory.success)
            or self._refuse_reward(trajectory)
            or (self._refuse_steps(trajectory))
        )

    def refuse_row(self, row: TokenizedTrajectory) -> str | None:
        """Why the tokenised row is dropped, or None to keep it."""
        return _outside(len(row) + row.truncated, self.min_tokens, self.max_tokens, "tokens")

    def _refuse_success(self, success: Any) -> str | None:
        if self.success is None:
            return None
        if success is None:
            return "no success recorded"
        if success not in (True, False):
            return f"success is recorded as {success!r:.40}, which is neither true nor false"
        return None if bool(success) == self.success else f"success is {str(bool(success)).lower()}"

    def _refuse_reward(self, trajectory: Trajectory) -> str | None:
        if self.min_reward is None:
            return None
        reward = trajectory.score if trajectory.score is not None else trajectory.meta.get("reward")
        if isinstance(reward, bool) or not isinstance(reward, int | float):
            return "no reward recorded"
        return f"reward below min_reward {self.min_reward}" if reward < self.min_reward else None

    def _refuse_steps(self, trajectory: Trajectory) -> str | None:
        if self.min_steps is None and self.max_steps is None:
            return None
        steps = max((s.step for cut in segment(trajectory) for s in cut), default=0)
        return _outside(steps, self.min_steps, self.max_steps, "steps")


def _outside(count: int, least: int | None, most: int | None, unit: str) -> str | None:
    if least is not None and count < least:
        return f"fewer {unit} than min_{unit} {least}"
    if most is not None and count > most:
        return f"more {unit} than max_{unit} {most}"
    return None


def content_digest(trajectory: Trajectory) -> bytes:
    """16 bytes, equal for conversations that differ in blanks of their texts and in ids only."""
    turns = [_content(message) for message in trajectory.messages]
    plain = json.dumps(turns, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _content(message: Message) -> list[Any]:
    thought = " ".join((message.reasoning_content or "").split())
    calls = [_without_id(call) for call in message.tool_calls or []]
    return [message.role, " ".join(message.text.split()), thought, calls]


def _without_id(call: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in call.items() if key not in ("id", "index")}
