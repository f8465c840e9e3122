"""A served model plays: any OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from sad_components.evaluation.policies.base import EpisodeView, Turn
from sad_components.evaluation.turns import TurnReader
from sad_components.trajectory import Message

#: Answers that may be different next time.
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Limits:
    """How an endpoint is treated.

    Args:
        timeout: seconds that one request may take.
        retries: how often a request is tried again, after waits that double from ``backoff`` on.
        backoff: seconds before the first retry; a ``Retry-After`` of the server goes first.
        concurrency: requests at the same time.
        requests_per_minute: most requests that are begun in a minute; None: no limit.
    """

    timeout: float = 120.0
    retries: int = 5
    backoff: float = 1.0
    concurrency: int = 16
    requests_per_minute: float | None = None


class EndpointPolicy:
    """Asks ``POST {base_url}/chat/completions`` for every turn, many at once.

    Args:
        base_url: up to the version: ``http://localhost:8000/v1``.
        model: name of the model there.
        temperature: of the sampling, done by the server.
        max_new_tokens: most tokens of a turn.
        seed: sent with every request, together with the episode's own draw.
        api_key_env: environment variable that holds the key; none is sent if it is not set.
        logprobs: ask for log-probabilities and keep them with the turn.
        system: a system message put before the transcript; None for none.
        name: what results call it; None: the model's name.
        limits: keyword arguments of :class:`Limits`.
    """

    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        base_url: str,
        model: str,
        temperature: float = 0.0,
        max_new_tokens: int = 256,
        seed: int = 0,
        api_key_env: str = "OPENAI_API_KEY",
        logprobs: bool = False,
        system: str | None = None,
        name: str | None = None,
        limits: dict[str, Any] | None = None,
    ) -> None:
        self.name = name or model
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._limits = Limits(**(limits or {}))
        self._system = system
        self._body = {"model": model, "temperature": temperature, "max_tokens": max_new_tokens}
        if logprobs:
            self._body["logprobs"] = True
        self._seed = seed
        key = os.environ.get(api_key_env)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._next_start = 0.0

    def act(self, episodes: Sequence[EpisodeView]) -> list[Turn]:
        return asyncio.run(self._all(episodes))

    async def _all(self, episodes: Sequence[EpisodeView]) -> list[Turn]:
        gate = asyncio.Semaphore(self._limits.concurrency)
        async with httpx.AsyncClient(
            headers=self._headers, timeout=self._limits.timeout, trust_env=False
        ) as client:
            return await asyncio.gather(*(self._one(client, gate, view) for view in episodes))

    async def _one(
        self, client: httpx.AsyncClient, gate: asyncio.Semaphore, view: EpisodeView
    ) -> Turn:
        body = {
            **self._body,
            "messages": self._messages(view),
            "seed": self._seed + view.rng.randrange(2**31),
        }
        async with gate:
            answer, why = await self._post(client, body)
        if answer is None:
            return Turn(failure=why)
        try:
            return _turn(answer, view.format)
        except (KeyError, IndexError, TypeError) as error:
            return Turn(failure=f"the endpoint's answer is no chat completion: {error!r}")

    def _messages(self, view: EpisodeView) -> list[dict[str, str]]:
        first = [{"role": "system", "content": self._system}] if self._system else []
        return [*first, *({"role": m.role, "content": m.text} for m in view.messages)]

    async def _post(self, client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[Any, str]:
        """The answer's JSON, or None and why there is none."""
        why = ""
        wait = self._limits.backoff
        for attempt in range(self._limits.retries + 1):
            await self._pace()
            pause = wait * (1 + 0.25 * random.random())
            try:
                response = await client.post(self._url, json=body)
            except httpx.TransportError as error:
                why = f"{type(error).__name__}: {error}"
            else:
                if response.status_code == 200:
                    try:
                        return response.json(), ""
                    except ValueError:
                        return None, "the endpoint's answer is not JSON"
                why = f"HTTP {response.status_code}: {response.text[:200]}"
                if response.status_code not in _RETRIED:
                    return None, why
                pause = _retry_after(response) or pause
            if attempt < self._limits.retries:
                await asyncio.sleep(pause)
                wait *= 2
        return None, f"no answer after {self._limits.retries + 1} tries; the last: {why}"

    async def _pace(self) -> None:
        """Waits for this request's place in the minute."""
        if self._limits.requests_per_minute is None:
            return
        now = time.monotonic()
        start = max(now, self._next_start)
        self._next_start = start + 60 / self._limits.requests_per_minute
        await asyncio.sleep(start - now)


def _turn(answer: Any, format: str) -> Turn:
    choice = answer["choices"][0]
    said = choice["message"]
    message = Message("assistant", _until_made_up(said.get("content") or "", format))
    if said.get("reasoning_content"):
        message.reasoning_content = said["reasoning_content"]
    content = (choice.get("logprobs") or {}).get("content")
    if content:
        message.logprobs = [float(token["logprob"]) for token in content]
    tokens = (answer.get("usage") or {}).get("completion_tokens") or 0
    return Turn(message, int(tokens))


def _until_made_up(text: str, format: str) -> str:
    """A turn without what the model made up as the environment's answer."""
    end = TurnReader(format).end(text, "")
    return (text if end is None else text[:end]).strip()


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return float(response.headers["retry-after"])
    except (KeyError, ValueError):
        return None
