"""Speed: tokens of all ranks, and where a step's time goes."""

from __future__ import annotations

import time

import pytest
import torch

from sad_components.training.report import PARTS, Throughput

CPU = torch.device("cpu")


def test_tokens_are_those_of_all_ranks():
    speed = Throughput(CPU, reduce=lambda counts: counts.mul_(3))
    speed.add(10, torch.tensor(4))
    speed.add(20, torch.tensor(5))
    rates = speed.rates()
    assert rates["tokens_per_s"] == pytest.approx(90 / rates["seconds"])
    assert rates["supervised_tokens_per_s"] == pytest.approx(27 / rates["seconds"])
    speed.add(1, torch.tensor(1))
    assert speed.rates()["tokens_per_s"] > 0
    totals = speed.totals()
    assert (totals["tokens"], totals["supervised_tokens"]) == (93, 30)


def test_parts_of_a_step_are_timed_apart():
    speed = Throughput(CPU)
    for _ in range(2):
        with speed.timing("teacher"):
            time.sleep(0.02)
    with speed.timing("loss"):
        time.sleep(0.01)
    rates = speed.rates()
    assert 0.04 <= rates["seconds_teacher"] <= rates["seconds"]
    assert 0.01 <= rates["seconds_loss"] < rates["seconds"]
    assert rates["seconds_student"] == 0
    assert speed.rates()["seconds_teacher"] == 0  # since the last call
    shares = speed.totals()["time_shares"]
    assert set(shares) == {*PARTS, "rest"}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["teacher"] > shares["loss"] > 0


def test_a_pause_is_left_out():
    speed = Throughput(CPU)
    time.sleep(0.05)
    speed.pause()
    assert speed.rates()["seconds"] < 0.05
