from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from sad_components.data import Batching
from sad_components.training.config import ConfigError
from sad_components.training.guards import (
    MOST_IN_A_ROW,
    NonfiniteError,
    NonfiniteGuard,
    clip_gradients_,
    rows_by_rank,
)
from sad_components.training.run_folder import RunFolder

GOOD = {"loss": 1.0, "grad_norm": 2.0}
BAD = [
    {**GOOD, "loss": math.nan},
    {**GOOD, "loss": math.inf},
    {**GOOD, "grad_norm": math.nan},
    {**GOOD, "grad_norm": math.inf},
]
ROWS = [{"rank": 0, "micro_batches": [[{"row": 3, "id": "kitchen"}]]}]


def rows():
    return ROWS


def no_rows():
    raise AssertionError("rows are asked for where they are needed only")


@pytest.mark.parametrize("bad", BAD)
def test_stopping_names_the_step_and_writes_its_rows(tmp_path, bad):
    guard = NonfiniteGuard("stop", RunFolder(tmp_path / "run"))
    assert guard.passes(6, GOOD, no_rows)
    with pytest.raises(NonfiniteError, match=r"step 7 has loss .*nonfinite_step_7.json"):
        guard.passes(7, {**bad, "kl_act": 0.5}, rows)
    written = json.loads(
        (tmp_path / "run" / "nonfinite_step_7.json").read_text(), parse_constant=pytest.fail
    )
    assert written["ranks"] == ROWS
    assert written["metrics"] == {
        k: str(v) if v not in (1.0, 2.0) else v for k, v in bad.items()
    } | {"kl_act": 0.5}


def test_skipping_counts_until_there_are_too_many_in_a_row(tmp_path):
    guard = NonfiniteGuard("skip", RunFolder(tmp_path / "run"))
    assert not guard.passes(1, BAD[0], rows)
    assert guard.passes(2, GOOD, no_rows)
    for step in range(3, 3 + MOST_IN_A_ROW):
        assert not guard.passes(step, BAD[2], rows)
    assert guard.skipped == 1 + MOST_IN_A_ROW
    assert guard.metrics() == {"skipped_steps": guard.skipped}
    resumed = NonfiniteGuard("skip", None)
    resumed.load_state_dict(guard.state_dict())
    for last in (guard, resumed):
        with pytest.raises(NonfiniteError, match=f"at most {MOST_IN_A_ROW} steps in a row"):
            last.passes(99, BAD[0], rows)


def test_only_the_main_process_writes(tmp_path):
    guard = NonfiniteGuard("skip", None)
    assert not guard.passes(1, BAD[0], no_rows)
    assert list(tmp_path.iterdir()) == []


def test_unknown_policy_is_refused():
    with pytest.raises(ConfigError, match="nonfinite is one of stop, skip; got 'warn'"):
        NonfiniteGuard("warn", None)


def test_rows_of_all_ranks_are_told_apart():
    class Row:
        def __init__(self, name):
            self.id = name

    data = [Row(name) for name in "abcde"]
    batching = Batching([1, 2, 3, 4, 5], batch_size=2)
    ranks = rows_by_rank([0, 1, 2, 3, 4], data, batching, world=2)
    ids = [[[row["id"] for row in batch] for batch in rank["micro_batches"]] for rank in ranks]
    assert [rank["rank"] for rank in ranks] == [0, 1]
    assert ids == [[["a", "c"], ["e"]], [["b", "d"]]]
    assert ranks[1]["micro_batches"][0][1] == {"row": 3, "id": "d"}


@pytest.mark.parametrize("limit", [None, 0.1, 100.0])
def test_norm_and_clipping_are_torchs(limit):
    torch.manual_seed(0)
    ours, theirs, unused = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(1, 1)
    for part in (ours, theirs):
        for index, parameter in enumerate(part.parameters()):
            parameter.grad = torch.full_like(parameter, index + 1.5)
    expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), limit or math.inf)
    norm = clip_gradients_([*ours.parameters(), *unused.parameters()], limit)
    assert float(norm) == float(expected)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours.parameters(), theirs.parameters()))


def test_norm_without_gradients_is_zero():
    assert float(clip_gradients_(list(nn.Linear(1, 1).parameters()), 1.0)) == 0
