"""Turns out of next-token logits: sampled or greedy, stopped where the action ends.

Shape legend: B sequences, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from sad_components.data.tokenizers import OffsetTokenizer
from sad_components.evaluation.decoding import NextToken, Prefix


@dataclass
class Prompt:
    """What a generator goes on from.

    Args:
        session: number under which a generator may remember what it has read.
        token_ids: the prompt.
        rng: draws the sampled tokens: one number a token.
        end: where a text is over: a character index, or None while it goes on.
        stop_ids: tokens that end the text; they belong to it.
        choices: how a text may go on: strings, the first of which it must become a prefix of; None
            where it is free. An empty string stands for a stop token.
    """

    session: int
    token_ids: list[int]
    rng: random.Random
    end: Callable[[str], int | None]
    stop_ids: frozenset[int]
    choices: Callable[[str], list[str] | None] | None = None


@dataclass
class Generation:
    """What came out.

    Args:
        token_ids: the sampled tokens, the stop token included.
        text: their text up to its end.
        logprobs: of each token under the model itself, in nats (before temperature and choices).
        stopped: whether it ended by itself, not for lack of room.
    """

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False


class TextGenerator(Protocol):
    """The seam for any model that writes text, an exported one for example."""

    tokenizer: OffsetTokenizer
    max_seq_len: int

    def generate(self, prompts: Sequence[Prompt]) -> list[Generation]:
        """A continuation of every prompt, in order."""
        ...


class Generator:
    """Writes continuations of many prompts together, one token each at a time.

    Args:
        model: gives the logits.
        tokenizer: of the model.
        max_new_tokens: most tokens of a continuation.
        temperature: 0 takes the likeliest token; above it, tokens are drawn from
            ``softmax(logits / temperature)``.

    Raises:
        ValueError: no new token, or a negative temperature.
    """

    def __init__(
        self,
        model: NextToken,
        tokenizer: OffsetTokenizer,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
    ) -> None:
        if max_new_tokens < 1 or temperature < 0:
            raise ValueError(
                "max_new_tokens is at least 1 and temperature at least 0; got "
                f"{max_new_tokens} and {temperature}"
            )
        self.model, self.tokenizer = model, tokenizer
        self.max_seq_len: int = model.max_seq_len
        self._max_new_tokens, self._temperature = max_new_tokens, temperature

    def generate(self, prompts: Sequence[Prompt]) -> list[Generation]:
        """A continuation of every prompt, in order; none where the prompt fills the model."""
        out = [Generation() for _ in prompts]
        active = [b for b, p in enumerate(prompts) if len(p.token_ids) < self.max_seq_len]
        for _ in range(self._max_new_tokens):
            if not active:
                break
            prefixes = [
                Prefix(prompts[b].session, prompts[b].token_ids + out[b].token_ids) for b in active
            ]
            chosen = self._choose(self.model.logits(prefixes), active, prompts, out)
            for b, (token, logprob) in zip(active, chosen, strict=True):
                self._append(out[b], token, logprob, prompts[b])
            room = self.max_seq_len
            active = [
                b
                for b in active
                if not out[b].stopped and len(prompts[b].token_ids) + len(out[b].token_ids) < room
            ]
        return out

    def _append(self, out: Generation, token: int, logprob: float, prompt: Prompt) -> None:
        out.token_ids.append(token)
        out.logprobs.append(logprob)
        out.text = self.tokenizer.decode(out.token_ids)
        end = prompt.end(out.text)
        if end is not None:
            while len(out.token_ids) > 1 and len(self.tokenizer.decode(out.token_ids[:-1])) >= end:
                out.token_ids.pop()
                out.logprobs.pop()
            out.text = out.text[:end]
        out.stopped = token in prompt.stop_ids or end is not None

    def _choose(
        self,
        logits_BV: Tensor,
        active: Sequence[int],
        prompts: Sequence[Prompt],
        out: Sequence[Generation],
    ) -> list[tuple[int, float]]:
        """One token and its log-probability for every active prompt."""
        logprobs_BV = torch.log_softmax(logits_BV, -1)
        weights_BV = logits_BV
        allowed = [self._allowed(prompts[b], out[b]) for b in active]
        if any(tokens is not None for tokens in allowed):
            weights_BV = logits_BV.clone()
            for row, tokens in enumerate(allowed):
                if tokens is not None:
                    barred_V = torch.ones_like(weights_BV[row], dtype=torch.bool)
                    barred_V[tokens] = False
                    weights_BV[row][barred_V] = float("-inf")
        if self._temperature == 0:
            token_B = weights_BV.argmax(-1)
        else:
            drawn = torch.tensor([prompts[b].rng.random() for b in active], dtype=torch.float64)
            token_B = _draw(weights_BV / self._temperature, drawn.to(weights_BV.device))
        logprob_B = logprobs_BV.gather(1, token_B[:, None])[:, 0]
        return list(zip(token_B.tolist(), logprob_B.tolist(), strict=True))

    def _allowed(self, prompt: Prompt, out: Generation) -> list[int] | None:
        """Tokens that keep the text a prefix of a choice; None where any token may come."""
        rests = prompt.choices(out.text) if prompt.choices is not None else None
        if rests is None:
            return None
        tokens: set[int] = set()
        for rest in rests:
            if not rest:
                tokens |= prompt.stop_ids
            for length in range(1, min(len(rest), self._longest_piece) + 1):
                tokens.update(self._pieces.get(rest[:length], ()))
        return sorted(tokens) or None

    @cached_property
    def _pieces(self) -> dict[str, list[int]]:
        """Text -> the tokens that spell it, behind other text."""
        control = set(self.tokenizer.special.values())
        anchor = self.tokenizer.encode_text("a:")[0]
        before = len(self.tokenizer.decode(anchor))
        pieces: dict[str, list[int]] = {}
        for token in range(self.tokenizer.vocab_size):
            text = self.tokenizer.decode([*anchor, token])[before:]
            if token not in control and text and "\ufffd" not in text:
                pieces.setdefault(text, []).append(token)
        return pieces

    @cached_property
    def _longest_piece(self) -> int:
        return max(map(len, self._pieces))


def _draw(logits_BV: Tensor, drawn_B: Tensor) -> Tensor:
    """Tokens by inverse cumulative distribution from numbers in [0, 1), shape [B]."""
    cumulative_BV = torch.softmax(logits_BV.double(), -1).cumsum(-1)
    target_B1 = (drawn_B * cumulative_BV[:, -1])[:, None]
    found_B = torch.searchsorted(cumulative_BV, target_B1, right=True)[:, 0]
    return found_B.clamp(max=logits_BV.shape[1] - 1)
