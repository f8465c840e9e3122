from __future__ import annotations

import math

import pytest
from omegaconf import OmegaConf

from sad_components.training.best import BestScore
from sad_components.training.config import ConfigError

SCORED = {"heldout": {"source": "x"}, "eval_every_n_steps": 5}


def read(asked, *, has_teacher: bool = True, **changes):
    cfg = OmegaConf.create({**SCORED, "keep_best": asked, **changes})
    return BestScore.read(cfg, has_teacher=has_teacher)


@pytest.mark.parametrize(
    ("metric", "mode", "values", "bests"),
    [
        ("kl_act", "min", [3.0, 2.0, 2.0, math.nan, 2.5, 1.0], [1, 2, 6]),
        ("action_match", "max", [0.2, 0.1, 0.3, math.nan, 0.3], [1, 3]),
    ],
)
def test_only_a_better_score_is_the_best(metric, mode, values, bests):
    best = read({"metric": metric, "mode": mode})
    found = [i for i, v in enumerate(values, start=1) if best.improved(i, {metric: v})]
    assert found == bests
    assert (best.step, best.value) == (bests[-1], values[bests[-1] - 1])


def test_a_resumed_run_goes_on_comparing():
    best, resumed = (read({"metric": "kl_act", "mode": "min"}) for _ in range(2))
    best.improved(4, {"kl_act": 1.5})
    resumed.load_state_dict(best.state_dict())
    assert not resumed.improved(8, {"kl_act": 2.0})
    assert resumed.step == 4
    other = read({"metric": "ce", "mode": "min"})
    other.load_state_dict(best.state_dict())
    assert other.step is None
    other.load_state_dict(None)


def test_nothing_asked_for_is_nothing():
    assert read(None) is None


@pytest.mark.parametrize(
    ("asked", "changes", "message"),
    [
        ({"metric": "kl_acts", "mode": "min"}, {}, "one of ce, .*kl_act, .*got 'kl_acts'"),
        ({"metric": "kl_act", "mode": "min"}, {"has_teacher": False}, "without a teacher"),
        ({"metric": "ce", "mode": "least"}, {}, "min or max; got 'least'"),
        ({"metric": "ce"}, {}, "keep_best needs these keys: mode"),
        ({"metric": "ce", "mode": "min", "last": 2}, {}, "nobody reads these keys of keep_best"),
        ("ce", {}, "mapping of metric and mode"),
        ({"metric": "ce", "mode": "min"}, {"heldout": None}, "heldout or eval_every_n_steps"),
        ({"metric": "ce", "mode": "min"}, {"eval_every_n_steps": None}, "is null"),
    ],
)
def test_what_cannot_be_compared_is_refused(asked, changes, message):
    with pytest.raises(ConfigError, match=message):
        read(asked, **changes)


def test_held_out_rows_without_such_tokens_are_explained():
    with pytest.raises(ConfigError, match=r"keep_best needs kl_act .* they give ce"):
        read({"metric": "kl_act", "mode": "min"}).improved(1, {"ce": 1.0, "actions": 3})
