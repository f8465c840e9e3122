"""What a set of played episodes says of its policy (``docs/method.md``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from sad_components.evaluation.rollout import Episode
from sad_components.evaluation.statistics import mcnemar_exact, paired_bootstrap, wilson_interval
from sad_components.formats.registry import segment
from sad_components.spans import SpanKind

#: Counts the tokens of a text.
CountTokens = Callable[[str], int]


def count_words(text: str) -> int:
    """Words of a text: the unit of reasoning length where there is no tokenizer."""
    return len(text.split())


def success(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Episodes won of those begun, with the 95 % Wilson interval of the rate.

    A failed or hung episode counts as begun and not won.
    """
    won = sum(e.won for e in episodes)
    low, high = wilson_interval(won, len(episodes))
    rate = won / len(episodes) if episodes else None
    return {"rate": rate, "low": low, "high": high, "won": won, "episodes": len(episodes)}


def reasoning(episodes: Sequence[Episode], count: CountTokens) -> tuple[int, int]:
    """Tokens of REASON in all episodes, and the thoughts that they make (one a step at most)."""
    tokens = thoughts = 0
    for episode in episodes:
        messages = episode.trajectory.messages
        steps = set()
        for message, spans in zip(messages, segment(episode.trajectory), strict=True):
            if message.reasoning_content:
                tokens += count(message.reasoning_content)
                steps.add((id(message), "separate"))
            for span in spans:
                if span.kind is SpanKind.REASON:
                    tokens += count(message.text[span.start : span.end])
                    steps.add((span.step, ""))
        thoughts += len(steps)
    return tokens, thoughts


def summarize(
    episodes: Sequence[Episode], seconds: float, count: CountTokens, unit: str
) -> dict[str, Any]:
    """All figures of a policy's rollouts.

    Args:
        episodes: played by one policy.
        seconds: wall-clock time of the whole rollout.
        count: counts the tokens of a thought.
        unit: what ``count`` counts, ``tokens`` or ``words``.

    Returns:
        Plain JSON. Rates lie in [0, 1]; means are over episodes begun, of steps over all steps.
    """
    steps = sum(e.steps for e in episodes)
    tokens = sum(e.tokens for e in episodes)
    reason_tokens, thoughts = reasoning(episodes, count)
    by_type: dict[str, list[Episode]] = {}
    for episode in episodes:
        by_type.setdefault(episode.trajectory.meta.get("task_type") or "all", []).append(episode)
    won = [e for e in episodes if e.won]
    return {
        "success": success(episodes),
        "by_task_type": {name: success(own) for name, own in sorted(by_type.items())},
        "score": _mean([e.trajectory.score or 0.0 for e in episodes]),
        "extra_scores": _extra_scores(episodes),
        "steps": _mean([e.steps for e in episodes]),
        "steps_when_won": _mean([e.steps for e in won]),
        "reasoning_length": _ratio(reason_tokens, steps),
        "reasoning_unit": unit,
        "thoughts": _ratio(thoughts, len(episodes)),
        "invalid_actions": _mean([e.invalid_actions for e in episodes]),
        "parse_failures": sum(e.parse_failures for e in episodes),
        "truncated": sum(e.truncated for e in episodes),
        "failed": dict(Counter(e.failure for e in episodes if e.failure)),
        "agent_tokens": tokens,
        "tokens_per_s": _ratio(tokens, seconds),
        "seconds_per_step": _ratio(seconds, steps),
        "episodes_per_s": _ratio(len(episodes), seconds),
        "seconds": seconds,
    }


def compare(a: Sequence[Episode], b: Sequence[Episode]) -> dict[str, Any]:
    """Paired comparison of two policies on the same tasks and seeds.

    Successes by McNemar's exact test; success and score differences (a - b) with a 95 % bootstrap
    interval over tasks; and the first step at which their actions differ.

    Raises:
        ValueError: the episodes are not of the same tasks and seeds, or there is none.
    """
    others = {e.job: e for e in b}
    if not a or {e.job for e in a} != set(others) or len(a) != len(b):
        raise ValueError(
            f"policies are compared on the same tasks and seeds; got {len(a)} and {len(b)} "
            "episodes of different ones"
        )
    pairs = [(e, others[e.job]) for e in a]
    only_a = sum(x.won and not y.won for x, y in pairs)
    only_b = sum(y.won and not x.won for x, y in pairs)
    both = sum(x.won and y.won for x, y in pairs)
    rate = paired_bootstrap([x.won for x, _ in pairs], [y.won for _, y in pairs])
    score = paired_bootstrap(
        [x.trajectory.score or 0.0 for x, _ in pairs], [y.trajectory.score or 0.0 for _, y in pairs]
    )
    diverged = [
        step for x, y in pairs if (step := first_difference(x.actions, y.actions)) is not None
    ]
    return {
        "pairs": len(pairs),
        "both_won": both,
        "only_a": only_a,
        "only_b": only_b,
        "neither": len(pairs) - both - only_a - only_b,
        "mcnemar_p": mcnemar_exact(only_a, only_b),
        "success_difference": dict(zip(("mean", "low", "high"), rate)),
        "score_difference": dict(zip(("mean", "low", "high"), score)),
        "diverged": len(diverged),
        "first_divergent_step": _mean(diverged),
    }


def first_difference(a: Sequence[str], b: Sequence[str]) -> int | None:
    """The first step (1-based) at which two episodes of a task act differently; None if never."""
    for step, (x, y) in enumerate(zip(a, b), start=1):
        if x != y:
            return step
    return None if len(a) == len(b) else min(len(a), len(b)) + 1


def _extra_scores(episodes: Sequence[Episode]) -> dict[str, float]:
    """Means of what environments report beside the score: HotPotQA's F1, for example.

    An episode that reports none counts 0: it did not get that far.
    """
    names = sorted({name for e in episodes for name in e.extra_scores})
    return {name: fmean(e.extra_scores.get(name, 0.0) for e in episodes) for name in names}


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _ratio(amount: float, of: float) -> float | None:
    return amount / of if of else None
