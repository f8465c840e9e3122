"""Intervals and paired tests, for counts as small as 60 episodes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import NormalDist, fmean


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion.

    Args:
        successes: how often it happened.
        trials: how often it could have.
        level: coverage in (0, 1).

    Returns:
        Lower and upper bound in [0, 1]; (0, 1) without a trial.

    Raises:
        ValueError: more successes than trials, or negative counts.

    >>> [round(bound, 3) for bound in wilson_interval(45, 60)]
    [0.628, 0.842]
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes lie in [0, trials]; got {successes} of {trials}")
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / trials
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value that A and B win equally often on the same tasks.

    Args:
        only_a: tasks that A won and B lost.
        only_b: tasks that B won and A lost.

    Returns:
        The binomial test of the discordant pairs against 1/2, in (0, 1].

    >>> round(mcnemar_exact(9, 1), 4)
    0.0215
    """
    discordant = only_a + only_b
    tail = sum(math.comb(discordant, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def paired_bootstrap(
    a: Sequence[float],
    b: Sequence[float],
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean difference a - b over the same tasks, with a percentile interval.

    Args:
        a: one figure per task.
        b: the other policy's, in the same order.
        level: coverage in (0, 1).
        resamples: bootstrap samples of tasks.
        seed: of the resampling.

    Returns:
        Mean difference, lower and upper bound.

    Raises:
        ValueError: not equally many figures, or none.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"a paired comparison needs equally many figures; got {len(a)}, {len(b)}")
    differences = [x - y for x, y in zip(a, b, strict=True)]
    rng = random.Random(seed)
    count = len(differences)
    means = sorted(fmean(rng.choices(differences, k=count)) for _ in range(resamples))
    cut = (1 - level) / 2
    low, high = means[int(cut * resamples)], means[min(int((1 - cut) * resamples), resamples - 1)]
    return fmean(differences), low, high
