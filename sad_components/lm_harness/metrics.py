"""What lm-eval's tasks make of a model's answers (``docs/method.md``, section 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sad_components.evaluation.heldout import normalise
from sad_components.evaluation.heldout_steps import token_f1
from sad_components.evaluation.turns import ParsedTurn, TurnReader

#: A sum and how many tokens it is over.
Weighed = tuple[float, int]


def span_nll(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Weighed]:
    """Negative log-likelihood of the turn's REASON and ACT tokens, in nats, with their counts.

    The continuations of a document each begin with the one before; what a span adds is the
    difference of two log-likelihoods.

    Args:
        doc: a :class:`~sad_components.lm_harness.documents.Turn`.
        results: (log-likelihood, is greedy) of each continuation.
    """
    sums = {"reason": 0.0, "act": 0.0}
    counts = {"reason": 0, "act": 0}
    before = 0.0
    for (logprob, _), kind, tokens in zip(results, doc["kinds"], doc["tokens"], strict=True):
        if kind in sums:
            sums[kind] += before - logprob
            counts[kind] += tokens
        before = logprob
    weighed = {kind: (sums[kind], counts[kind]) for kind in sums}
    return {f"{kind}_{unit}": weighed[kind] for unit in ("nll", "ppl") for kind in weighed}


def nats_per_token(items: Sequence[Weighed]) -> float:
    """Mean over tokens; NaN without any."""
    count = sum(tokens for _, tokens in items)
    return sum(nats for nats, _ in items) / count if count else math.nan


def token_perplexity(items: Sequence[Weighed]) -> float:
    """``exp`` of :func:`nats_per_token`."""
    return math.exp(nats_per_token(items))


def action_match(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the action written behind the recorded thought is the recorded one."""
    wanted, got = (_action_of(doc["format"], text) for text in (doc["action"], results[0]))
    return {"action_match": float(normalise(wanted) == normalise(got))}


def reason_match(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The turn that the model writes by itself, against the recorded one.

    It is over where it is over in play: behind its first action. A student that never learnt what
    an environment says goes on with turns of its own.

    Returns:
        ``reason_match`` (equal thoughts, blanks folded), ``reason_f1`` (token F1),
        ``step_accuracy`` (the action is acceptable) and ``parsed`` (there is one).
    """
    reader = TurnReader(doc["format"])
    wanted = reader.read(doc["whole"])
    end = reader.end(results[0], "" if "\n" in wanted.action else "\n")
    got = reader.read(results[0][:end])
    return {
        "reason_match": float(got.reasoning.split() == wanted.reasoning.split()),
        "reason_f1": token_f1(got.reasoning, wanted.reasoning),
        "step_accuracy": float(_is_acceptable(got, doc["acceptable"] or [wanted.action])),
        "parsed": float(got.parsed),
    }


def _is_acceptable(turn: ParsedTurn, acceptable: Sequence[str]) -> bool:
    return turn.parsed and normalise(turn.action) in map(normalise, acceptable)


def _action_of(format: str, text: str) -> str:
    """The first action of a text; the whole text where the format marks none."""
    try:
        turn = TurnReader(format).read(text)
    except ValueError:  # a format without an action marker
        return text
    return turn.action if turn.parsed else text
