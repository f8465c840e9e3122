"""Intervals and tests against figures of scipy."""

import random

import pytest

from sad_components.evaluation.statistics import mcnemar_exact, paired_bootstrap, wilson_interval


@pytest.mark.parametrize(
    ("won", "of", "low", "high"),
    [  # scipy.stats.binomtest(won, of).proportion_ci(method="wilson")
        (0, 10, 0.0, 0.27753279986288926),
        (10, 10, 0.7224672001371107, 1.0),
        (45, 60, 0.6276792992295218, 0.8422347746994333),
        (1, 3, 0.0614919447203962, 0.7923403991979523),
    ],
)
def test_wilson(won, of, low, high):
    assert wilson_interval(won, of) == pytest.approx((low, high), abs=1e-9)


def test_wilson_without_trials_and_with_nonsense():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="got 3 of 2"):
        wilson_interval(3, 2)


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [(0, 0, 1.0), (5, 5, 1.0), (9, 1, 0.021484375), (0, 8, 0.0078125), (60, 0, 2 / 2**60)],
)
def test_mcnemar(a, b, wanted):
    assert mcnemar_exact(a, b) == pytest.approx(wanted)
    assert mcnemar_exact(b, a) == mcnemar_exact(a, b)


def test_bootstrap_covers_the_true_difference():
    rng = random.Random(0)
    covered = 0
    for trial in range(60):
        a = [float(rng.random() < 0.7) for _ in range(80)]
        b = [float(rng.random() < 0.5) for _ in range(80)]
        mean, low, high = paired_bootstrap(a, b, resamples=400, seed=trial)
        assert low <= mean <= high
        covered += low <= 0.2 <= high
    assert covered >= 50


def test_bootstrap_of_equals_and_nonsense():
    assert paired_bootstrap([1, 0, 1], [1, 0, 1], resamples=50) == (0, 0, 0)
    assert paired_bootstrap([3.0], [1.0], resamples=50) == (2, 2, 2)
    with pytest.raises(ValueError, match="equally many figures; got 1, 2"):
        paired_bootstrap([1], [1, 2])
