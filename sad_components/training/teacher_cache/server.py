"""A teacher too big for this machine: an OpenAI-compatible server that scores given tokens.

The server must return ``prompt_logprobs`` for a prompt of token ids, as vLLM's ``/v1/completions``
does; start it with ``--max-logprobs`` of at least ``cache.k``. It answers at temperature 1 only.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import torch
from torch import Tensor

from sad_components.data.transform import TokenizedTrajectory
from sad_components.loss import LossSpec, TopKRows
from sad_components.loss.functional import entropy
from sad_components.training.teacher_cache.codecs import Codec, TopKCodec
from sad_components.training.teacher_cache.errors import CacheError
from sad_components.training.teacher_cache.sources import EncodedRow, span_totals

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
#: Smallest mass of the tokens that a server did not name.
_LEAST_TAIL = 1e-7


class ServerTeacher:
    """Connection to the server.

    Args:
        base_url: up to and with ``/v1``.
        model: the name under which the server knows the teacher.
        api_key: sent as a bearer token; None: none.
        concurrency: requests at a time.
        retries: further tries of a request after a failed connection, a timeout or a busy server.
        timeout: seconds for one request.
        backoff: seconds before the first retry; doubled each time, at most 30.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        concurrency: int = 8,
        retries: int = 6,
        timeout: float = 120.0,
        backoff: float = 1.0,
    ) -> None:
        if concurrency < 1 or retries < 0:
            raise ValueError(
                f"concurrency must be >= 1 and retries >= 0; got {concurrency} and {retries}"
            )
        self.model, self.concurrency = model, concurrency
        self._retries, self._backoff = retries, backoff
        self._url = base_url.rstrip("/") + "/completions"
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=concurrency)
        self._client = httpx.Client(timeout=timeout, headers=headers, limits=limits)

    def prompt_logprobs(self, tokens: Sequence[int], k: int) -> list[dict[str, Any] | None]:
        """Per token of the prompt: id (as text) -> its ``logprob``; None for the first token.

        Raises:
            CacheError: the server refused, did not answer, or answered something else.
        """
        request = {
            "model": self.model,
            "prompt": list(tokens),
            "prompt_logprobs": k,
            "max_tokens": 1,
            "temperature": 1.0,
        }
        answer = self._post(request)
        try:
            scored = answer["choices"][0]["prompt_logprobs"]
        except (KeyError, IndexError, TypeError):
            scored = None
        if not isinstance(scored, list) or len(scored) != len(tokens):
            raise CacheError(
                f"{self._url} must return prompt_logprobs for each of the {len(tokens)} tokens; "
                f"got {str(answer)[:200]} (vLLM's /v1/completions does)"
            )
        return scored

    def _post(self, request: Mapping[str, Any]) -> Any:
        for attempt in range(self._retries + 1):
            try:
                response = self._client.post(self._url, json=request)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.is_success:
                    return response.json()
                problem = f"status {response.status_code}: {response.text[:300]}"
                if response.status_code not in _RETRIED:
                    raise CacheError(f"{self._url} refused: {problem}")
            if attempt < self._retries:
                pause = min(30.0, self._backoff * 2**attempt)
                time.sleep(pause * random.uniform(0.5, 1.0))
        raise CacheError(
            f"{self._url} did not answer in {self._retries + 1} tries ({problem}); what is "
            "finished stays: run the recipe again when the server is back"
        )

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()


class ServerSource:
    """Rows scored by a server, several at a time.

    Args:
        server: the connection.
        codec: must be a :class:`TopKCodec` at temperature 1.
        spec: which tokens (``sources.supervision``).

    Raises:
        CacheError: a codec that a server cannot fill.
    """

    def __init__(self, server: ServerTeacher, codec: Codec, spec: LossSpec) -> None:
        if not isinstance(codec, TopKCodec) or codec.temperatures != (1.0,):
            raise CacheError(
                "a server gives top log-probabilities at temperature 1 only; set cache.mode: topk "
                "and cache.temperatures: [1.0], or run the teacher here for other modes"
            )
        self.server, self.codec, self.spec = server, codec, spec

    def fingerprint(self) -> dict[str, Any]:
        return {"teacher": f"server:{self.server.model}"}

    def encode(self, rows: Sequence[TokenizedTrajectory]) -> list[EncodedRow]:
        with ThreadPoolExecutor(self.server.concurrency) as pool:
            return list(pool.map(self._encode_row, rows))

    def _encode_row(self, row: TokenizedTrajectory) -> EncodedRow:
        kinds_N = torch.from_numpy(row.span_ids[1:]).long()
        chosen_N = self.spec.supervised(kinds_N)
        positions = (chosen_N.nonzero().flatten() + 1).tolist()
        tokens = row.tokens.tolist()[: positions[-1] + 1]
        scored = self.server.prompt_logprobs(tokens, self.codec.k)
        pairs = [self._top(scored[t], tokens[t]) for t in positions]
        ids_NK = torch.tensor([[i for i, _ in pair] for pair in pairs])
        rows = TopKRows(ids_NK, {1.0: with_tail(_column(pairs))})
        totals = span_totals(entropy(rows.at(1.0)), kinds_N[chosen_N])
        return EncodedRow(self.codec.pack(rows), *totals)

    def _top(self, scored: dict[str, Any] | None, token: int) -> list[tuple[int, float]]:
        """The k most probable tokens, best first."""
        scored = scored or {}
        if str(token) not in scored:
            raise CacheError(
                f"the server must score the tokens it was sent, but gave none for token {token}: "
                "its model has another tokenizer, or it dropped part of the prompt"
            )
        pairs = sorted(((int(i), float(s["logprob"])) for i, s in scored.items()), key=_by_logprob)
        if len(pairs) < self.codec.k:
            raise CacheError(
                f"the server must name {self.codec.k} tokens a position; got {len(pairs)}: start "
                f"it with --max-logprobs {self.codec.k}, or set a smaller cache.k"
            )
        if max(i for i, _ in pairs) >= self.codec.vocab_size:
            raise CacheError(
                f"the server names token {max(i for i, _ in pairs)}, but the tokenizer has "
                f"{self.codec.vocab_size}: its model has another vocabulary"
            )
        return pairs[: self.codec.k]


def with_tail(log_probs_NK: Tensor) -> Tensor:
    """Log masses of K + 1 buckets: the kept ones', and what they leave, float32 [N, K + 1]."""
    kept = log_probs_NK.exp().sum(-1, keepdim=True)
    tail = (1 - kept).clamp(min=_LEAST_TAIL)
    return torch.cat([log_probs_NK, tail.log()], dim=-1).log_softmax(-1).float()


def _column(pairs: list[list[tuple[int, float]]]) -> Tensor:
    return torch.tensor([[p for _, p in pair] for pair in pairs], dtype=torch.float64)


def _by_logprob(pair: tuple[int, float]) -> tuple[float, int]:
    return -pair[1], pair[0]
