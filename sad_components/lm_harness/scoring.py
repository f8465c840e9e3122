"""Log-probabilities of tokens behind their context, each sequence read as seldom as possible.

Shape legend: B sequences, S positions, N scored positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torchtune.modules import TransformerDecoder

from sad_components.models.hidden import head_of, restore_logits, stop_at_hidden
from sad_components.models.last_layer import hidden_at


class Scored(NamedTuple):
    """What a continuation got.

    Args:
        logprob: sum of its tokens' log-probabilities, in nats.
        is_greedy: whether each of its tokens is the likeliest at its place.
    """

    logprob: float
    is_greedy: bool


@dataclass
class Reading:
    """A sequence to read, and the requests that this reading answers.

    Args:
        tokens: input of the model.
        requests: (index of the request, length of its input, its continuation); each input is a
            prefix of ``tokens``.
    """

    tokens: list[int]
    requests: list[tuple[int, int, list[int]]] = field(default_factory=list)

    @property
    def positions(self) -> list[int]:
        """Where logits are needed, ascending: position t predicts token t + 1."""
        needed: set[int] = set()
        for _, length, continuation in self.requests:
            needed.update(range(length - len(continuation), length))
        return sorted(needed)


class Scorer(Protocol):
    """Logits of some positions of some sequences."""

    def logits(self, readings: Sequence[Reading]) -> list[Tensor]:
        """For each reading the logits at its ``positions``, shape [N, V], fp32."""
        ...


class DecoderScorer:
    """A torchtune decoder reads whole sequences, several at once, padded on the right.

    Args:
        model: put into eval mode; while it reads it has no output projection.
        vocab_size: tokens that may come out; None: all.
    """

    def __init__(self, model: TransformerDecoder, vocab_size: int | None = None) -> None:
        self._model, self._vocab_size = model.eval(), vocab_size

    @torch.no_grad()
    def logits(self, readings: Sequence[Reading]) -> list[Tensor]:
        head = head_of(self._model, self._vocab_size)
        device = head.weight_VD.device
        width = max(len(r.tokens) for r in readings)
        tokens_BS = torch.tensor([r.tokens + [0] * (width - len(r.tokens)) for r in readings])
        chosen_BS = torch.zeros(tokens_BS.shape, dtype=torch.bool)
        for row, reading in enumerate(readings):
            chosen_BS[row, reading.positions] = True
        stop_at_hidden(self._model)
        try:
            hidden_ND = hidden_at(self._model, tokens_BS.to(device), chosen_BS.to(device))
        finally:
            restore_logits(self._model)
        counts = [len(reading.positions) for reading in readings]
        return [head.logits(part).float() for part in hidden_ND.split(counts)]


class ReadsSequences(Protocol):
    """A model that gives the logits behind many tokens of one sequence; exported ones do."""

    def sequence_logits(self, token_ids: Sequence[int], start: int = 0) -> Tensor:
        """Logits behind each token from ``start`` on, shape [S - start, V], fp32."""
        ...


class ExportScorer:
    """An exported model reads one sequence after the other.

    Args:
        model: reads.
    """

    def __init__(self, model: ReadsSequences) -> None:
        self._model = model

    def logits(self, readings: Sequence[Reading]) -> list[Tensor]:
        out = []
        for reading in readings:
            first = reading.positions[0]
            logits_SV = self._model.sequence_logits(reading.tokens, first)
            out.append(logits_SV[[at - first for at in reading.positions]].float())
        return out


def score(
    scorer: Scorer,
    inputs: Sequence[tuple[list[int], list[int]]],
    batches: Callable[[Sequence[Reading]], Iterator[Sequence[Reading]]],
    done: Callable[[int], None] = lambda count: None,
) -> list[Scored]:
    """The continuations' scores, in order.

    A request whose input is the beginning of another's is answered by the other's reading: in a
    causal model what comes later changes nothing. So the turns of one trajectory, each with its
    history as context, cost a single reading of the trajectory.

    Args:
        scorer: reads.
        inputs: for each request the input of the model (context and continuation without its last
            token) and the continuation.
        batches: cuts readings, longest first, into those that are read together.
        done: hears how many requests were answered after each batch.
    """
    out: list[Scored | None] = [None] * len(inputs)
    for batch in batches(shared_readings(inputs)):
        for reading, logits_NV in zip(batch, scorer.logits(batch), strict=True):
            logprobs_NV = torch.log_softmax(logits_NV, -1)
            best_N = logits_NV.argmax(-1)
            row_of = {position: row for row, position in enumerate(reading.positions)}
            for index, length, continuation in reading.requests:
                first = row_of[length - len(continuation)]
                rows = slice(first, first + len(continuation))
                wanted = torch.tensor(continuation, device=logprobs_NV.device)
                total = logprobs_NV[rows].gather(1, wanted[:, None]).sum()
                out[index] = Scored(float(total), bool((best_N[rows] == wanted).all()))
        done(sum(len(reading.requests) for reading in batch))
    return [scored for scored in out if scored is not None]


def shared_readings(inputs: Sequence[tuple[list[int], list[int]]]) -> list[Reading]:
    """The sequences that have to be read, longest first, with the requests of their prefixes.

    >>> [r.tokens for r in shared_readings([([1, 2], [9]), ([1, 2, 3], [9]), ([1, 4], [9])])]
    [[1, 2, 3], [1, 4]]
    """
    order = sorted(range(len(inputs)), key=lambda i: inputs[i][0], reverse=True)
    readings: list[Reading] = []
    for index in order:  # in lexicographic order a prefix stands right before what it begins
        tokens, continuation = inputs[index]
        if not readings or readings[-1].tokens[: len(tokens)] != tokens:
            readings.append(Reading(tokens))
        readings[-1].requests.append((index, len(tokens), continuation))
    return sorted(readings, key=lambda reading: -len(reading.tokens))
