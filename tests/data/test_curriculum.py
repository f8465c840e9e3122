"""Easy rows first: complexity, pace, and that no row is lost or read too often."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sad_components.data import Batching, StepOrder
from sad_components.data.curriculum import Curriculum, CurriculumOrder, complexity
from sad_components.data.store import GroupedRow, RecordMaker, RowTable
from sad_components.data.transform import TokenizedTrajectory

CONTEXT, REASON, ACT = 0, 1, 2
RANDOM = np.random.default_rng(0)


def row(reason, act, *, id="r", entropy=None):
    kinds = np.array([CONTEXT] + [REASON] * reason + [ACT] * act)
    n = len(kinds)
    return TokenizedTrajectory(
        np.arange(n), kinds, np.arange(n), np.zeros(n, bool), id=id, entropy=entropy
    )


def complexities(rows, from_teacher=None, **options):
    """Of rows as a data set knows them."""
    record_of = RecordMaker()
    table = RowTable.from_records(np.array([record_of(GroupedRow(0, row)) for row in rows]))
    return Curriculum(**options).complexities(table, rows, from_teacher)


def make(rows=40, batch=4, epochs=3, seed=0, scores=None, mix=None, **pace):
    """An order over ``epochs``; row i is the i-th easiest unless told otherwise."""
    scores = np.arange(rows) if scores is None else scores
    plain = StepOrder(RANDOM.permutation(rows) + 5, batch, seed, **(mix or {}))
    total = plain.steps_per_epoch * epochs
    return CurriculumOrder(plain, scores, Curriculum(**pace), total)


def steps(order):
    return [order.step_rows(step) for step in range(order.total_steps)]


# -- complexity ---------------------------------------------------------------------------------


def test_complexity_by_hand():
    assert complexity(10, 4, 0.5, alpha=1.0, beta=2.0, gamma=100.0) == 68.0
    rows = [row(10, 4, entropy=0.5), row(3, 1, entropy=2.0)]
    assert complexities(rows, alpha=1.0, beta=2.0, gamma=100.0).tolist() == [68.0, 205.0]
    assert complexities([row(10, 4), row(3, 1)]).tolist() == [14.0, 4.0]


def test_entropy_comes_from_the_file_then_the_teacher_then_the_row(tmp_path):
    rows = [row(1, 1, id="a", entropy=1.0), row(2, 1, id="b", entropy=1.0)]
    (tmp_path / "entropy.json").write_text(json.dumps({"a": 5.0, "b": 6.0}))
    nats = {"alpha": 0.0, "beta": 0.0, "gamma": 1.0}
    assert complexities(rows, **nats).tolist() == [1.0, 1.0]
    assert complexities(rows, [2.0, None], **nats).tolist() == [2.0, 1.0]
    file = str(tmp_path / "entropy.json")
    assert complexities(rows, [2.0, None], **nats, entropy=file).tolist() == [5.0, 6.0]


def test_rows_without_entropy_are_counted_and_the_remedy_named():
    rows = [row(1, 1, id="a", entropy=1.0), row(1, 2, id="b"), row(1, 3, id="c", entropy=np.nan)]
    message = r"gamma 2 needs .*2 of 3 rows have none \(b, c\): run recipes/cache_teacher.py"
    for said in (None, [None, None, None]):
        with pytest.raises(ValueError, match=message):
            complexities(rows, said, gamma=2.0)
    assert complexities(rows, gamma=0.0).tolist() == [2.0, 3.0, 4.0]


@pytest.mark.parametrize("content", [None, "{", "[1]", '{"a": "x"}', '{"a": NaN}'])
def test_a_file_that_holds_no_entropies_is_refused(tmp_path, content):
    file = tmp_path / "e.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=r"curriculum.entropy is a .*e\.json"):
        complexities([row(1, 1, id="a")], gamma=1.0, entropy=str(file))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1}, "curriculum.alpha is a number >= 0; got -1"),
        ({"beta": "x"}, "curriculum.beta is a number >= 0; got 'x'"),
        ({"gamma": float("inf")}, "curriculum.gamma is a number >= 0; got inf"),
        ({"alpha": 0, "beta": 0}, "one of alpha, beta and gamma is above 0"),
        ({"start": 0}, "curriculum.start is a number above 0 and at most 1; got 0"),
        ({"start": 1.5}, "above 0 and at most 1; got 1.5"),
        ({"full_at": -0.1}, "curriculum.full_at is a number from 0 to 1; got -0.1"),
        ({"full_at": True}, "from 0 to 1; got True"),
        ({"full_at": None}, "from 0 to 1; got None"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Curriculum(**options)


# -- pace ---------------------------------------------------------------------------------------


def test_the_pool_grows_linearly_to_all_rows():
    order = make(rows=40, epochs=3, start=0.25, full_at=0.5)  # 30 steps, all in after 15
    assert order.full_step == 15
    assert [order.pool_rows(step) for step in range(15)] == [10 + 2 * step for step in range(15)]
    assert {order.pool_rows(step) for step in range(15, 30)} == {40}
    assert order.metrics(5) == {"pool": 0.5}


def test_only_rows_of_the_pool_are_read():
    order = make(start=0.25, full_at=0.5)
    for step, rows in enumerate(steps(order)):
        assert max(rows) < order.pool_rows(step)


def test_equal_complexities_come_as_in_the_data():
    order = make(scores=np.zeros(40), start=0.1, full_at=1.0)
    assert order.step_rows(0) == sorted([0, 1, 2, 3], key=lambda i: order.lengths[i])


def test_the_pool_holds_at_least_a_step():
    order = make(rows=10, batch=8, epochs=2, start=0.01, full_at=1.0)
    assert order.pool_rows(0) == 8
    assert len(set(order.step_rows(0))) == 8


@pytest.mark.parametrize(("full_at", "full_step"), [(0.0, 0), (0.34, 10), (1.0, 29), (0.97, 29)])
def test_all_rows_are_in_by_the_last_step_at_the_latest(full_at, full_step):
    order = make(rows=40, epochs=3, full_at=full_at)
    assert order.full_step == full_step
    assert order.pool_rows(full_step) == 40


def test_a_training_of_one_step_or_none():
    for total in (0, 1):
        order = CurriculumOrder(StepOrder([1] * 4, 4, 0), range(4), Curriculum(), total)
        assert sorted(order.step_rows(0)) == [0, 1, 2, 3]


# -- rows ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 50),
    st.integers(1, 12),
    st.integers(1, 4),
    st.floats(0.01, 1.0),
    st.floats(0.0, 1.0),
)
def test_steps_are_as_large_as_without_and_hold_no_row_twice(rows, batch, epochs, start, full_at):
    order = make(rows, batch, epochs, start=start, full_at=full_at)
    plain = StepOrder(order.lengths, batch, 0)
    for step, read in enumerate(steps(order)):
        assert len(read) == len(plain.step_rows(step)) == len(set(read))
        assert read == sorted(read, key=lambda i: (order.lengths[i], i))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 9), st.floats(0.2, 1.0), st.floats(0.0, 1.0))
def test_every_row_is_read_within_an_epoch_of_when_all_are_in(rows, batch, start, full_at):
    order = make(rows, batch, 6, start=start, full_at=full_at)
    end = order.full_step + order.steps_per_epoch
    seen = {row for step in range(end) for row in order.step_rows(step)}
    assert seen == set(range(rows))


def test_one_epoch_reads_every_row_once():
    order = make(rows=43, batch=4, epochs=1, start=0.3, full_at=0.5)
    assert sorted(row for rows in steps(order) for row in rows) == list(range(43))
    middle = np.mean([row for step in range(5) for row in order.step_rows(step)])
    assert middle < 16  # of easy rows; a shuffle's would be near 21


def test_a_pass_reads_the_whole_pool_before_a_row_comes_again():
    order = make(rows=20, batch=4, epochs=3, start=1.0)
    read = [row for rows in steps(order) for row in rows]
    passes = [read[start : start + 20] for start in (0, 20, 40)]
    assert [sorted(each) for each in passes] == [list(range(20))] * 3
    assert len({tuple(each) for each in passes}) == 3


def test_uses_stay_even_once_all_rows_are_in():
    order = make(rows=40, batch=4, epochs=8, start=0.3, full_at=0.25)
    before = order.full_step + order.steps_per_epoch
    counts = Counter(row for rows in steps(order)[before:] for row in rows)
    assert max(counts.values()) - min(counts.get(i, 0) for i in range(40)) <= 2


def test_easy_rows_are_read_more_often():
    counts = Counter(row for rows in steps(make(epochs=4, start=0.2, full_at=0.8)) for row in rows)
    easy, hard = sum(counts[i] for i in range(8)), sum(counts[i] for i in range(32, 40))
    assert easy > 2 * hard > 0


def test_the_order_is_a_function_of_step_and_settings():
    order = make(start=0.3)
    known = steps(order)
    plain = StepOrder(order.lengths, 4, 0)
    again = CurriculumOrder(plain, order.complexities, order.curriculum, order.total_steps)
    assert [again.step_rows(step) for step in reversed(range(30))] == known[::-1]
    assert again.settings() == order.settings()
    assert len(again.step_rows(30)) == 4  # what a recipe reads ahead of its last step


@pytest.mark.parametrize(
    "change",
    [
        {"start": 0.4},
        {"full_at": 0.6},
        {"alpha": 2.0},
        {"epochs": 4},
        {"seed": 1},
        {"scores": np.arange(40) * 2.0},
    ],
)
def test_settings_tell_orders_apart(change):
    one, other = make(), make(**change)
    assert one.settings() != other.settings()


def test_settings_are_plain_json():
    found = make().settings()
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_ranks_share_the_rows_of_a_step(world):
    order = make()
    batching = Batching(order.lengths, 2)
    for rows in steps(order):
        shares = [batching.micro_batches(rows, rank, world) for rank in range(world)]
        assert sorted(i for s in shares for b in s for seq in b for i in seq) == sorted(rows)


def test_the_line_for_people():
    (line,) = make(rows=40, epochs=3, start=0.25, full_at=0.5).describe()
    assert line == (
        "curriculum: complexity 0 (easiest), 19.5 (median), 39 (hardest); 10 of 40 rows at the "
        "start, all of them from step 16 of 30 on"
    )


def test_as_many_complexities_as_rows():
    with pytest.raises(ValueError, match="every row has one complexity; got 3 for 40 rows"):
        make(scores=np.arange(3))


# -- mixtures -----------------------------------------------------------------------------------

GROUPS = np.array([0] * 30 + [1] * 10)
MIX = {"groups": GROUPS, "weights": [1, 1]}


def test_each_source_of_a_mixture_opens_by_its_own_complexities_at_its_own_share():
    hard_source_first = np.r_[np.arange(30) + 1000, np.arange(10)]
    order = make(scores=hard_source_first, epochs=3, start=0.2, full_at=0.5, mix=MIX)
    plain = StepOrder(order.lengths, 4, 0, **MIX)
    for step, rows in enumerate(steps(order)):
        count = [int((GROUPS[read] == 0).sum()) for read in (rows, plain.step_rows(step))]
        assert count[0] == count[1], step
    first = steps(order)[0]
    assert all(row < 6 or 30 <= row < 34 for row in first)
    read = Counter(row for rows in steps(order) for row in rows)
    assert sum(n for row, n in read.items() if row < 30) == 60
    assert set(read) == set(range(40))
    assert order.settings()["rows_per_source"] == [20, 20]


def test_a_source_smaller_than_its_share_of_a_step_is_read_again_within_it():
    groups = np.array([0] * 11 + [1])
    order = make(12, 12, 2, mix={"groups": groups, "weights": [1, 1]})
    assert Counter(order.step_rows(0))[11] == 6
