"""Rows on disk: the same as in memory, made once, never stale, and in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sad_components import formats
from sad_components.data import SpanTokenizer, TrajectoryDataset, collate, sources
from sad_components.data import store as store_module
from sad_components.data.batch import row_key
from sad_components.data.order import StepOrder
from sad_components.data.store import StoredRows
from sad_components.formats import registry
from sad_components.trajectory import TrajectoryError, write_jsonl

ARRAYS = ("tokens", "span_ids", "steps", "branch")


CODE_DIGEST = store_module.code_digest


@pytest.fixture(autouse=True)
def no_edits_meanwhile(monkeypatch):
    """Editing a source while the tests run makes stores anew, as it should; here it must not."""
    monkeypatch.setattr(store_module, "code_digest", lambda: "this code")


@pytest.fixture
def transform(tokenizer):
    return SpanTokenizer(tokenizer, style="plain", max_seq_len=200)


@pytest.fixture
def source(tmp_path, react):
    rows = [react(k % 7 + 1, id=f"é{k}", meta={"teacher_entropy": k / 4}) for k in range(20)]
    rows[3].meta = {}
    rows[4].messages[1].weight = 0
    rows.append(react(30, id="long", success=False))
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, rows)
    return path


def assert_same_rows(left, right):
    assert len(left) == len(right)
    for mine, theirs in zip(left, right):
        for name in ARRAYS:
            a, b = getattr(mine, name), getattr(theirs, name)
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        assert (mine.id, mine.truncated, mine.entropy) == (
            theirs.id,
            theirs.truncated,
            theirs.entropy,
        )


def test_stored_rows_are_the_rows_in_memory(source, transform, tmp_path):
    memory = TrajectoryDataset(str(source), transform)
    stored = TrajectoryDataset(str(source), transform, store=str(tmp_path / "store"))
    assert isinstance(stored.rows, StoredRows)
    assert_same_rows(memory.rows, stored.rows)
    assert any(row.truncated for row in stored.rows)
    for name in ("lengths", "counts", "entropy", "groups"):
        a, b = getattr(memory.table, name), getattr(stored.table, name)
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert memory.lengths.tolist() == [len(row) for row in memory.rows]
    kinds = [np.bincount(row.span_ids, minlength=4) for row in memory.rows]
    np.testing.assert_array_equal(memory.table.counts, kinds)
    assert np.isnan(memory.table.entropy[3])
    assert memory.table.entropy[0] == 0.0
    known = {**stored.report.to_dict(), "store": ""}
    assert known == memory.report.to_dict()


def test_orders_and_batches_are_those_of_memory(source, transform, tmp_path):
    memory = TrajectoryDataset(str(source), transform)
    stored = TrajectoryDataset(str(source), transform, store=str(tmp_path / "store"))
    orders = [StepOrder(data.lengths, 4, seed=3) for data in (memory, stored)]
    for step in range(2 * orders[0].steps_per_epoch):
        mine, theirs = (order.step_rows(step) for order in orders)
        assert mine == theirs
        batches = [collate([d[i] for i in mine], 0) for d in (memory, stored)]
        assert batches[0].tokens_BS.equal(batches[1].tokens_BS)


def test_random_access_and_lazy_slices(source, transform, tmp_path):
    memory = TrajectoryDataset(str(source), transform).rows
    stored = TrajectoryDataset(str(source), transform, store=str(tmp_path / "s")).rows
    assert row_key(stored[-1]) == row_key(memory[-1])
    for part in (slice(2, 5), slice(None, None, 3), slice(-3, None), slice(30, 40)):
        assert isinstance(stored[part], StoredRows)
        assert_same_rows(memory[part], stored[part])
    assert_same_rows(memory[2:9][1:3], stored[2:9][1:3])
    with pytest.raises(IndexError):
        stored[len(stored)]


def test_a_row_read_from_a_store_can_be_written_to(source, transform, tmp_path):
    rows = TrajectoryDataset(str(source), transform, store=str(tmp_path / "s")).rows
    before = row_key(rows[0])
    rows[0].tokens[:] = 0
    assert row_key(rows[0]) == before


@pytest.fixture
def count_runs(monkeypatch):
    """How many trajectories were tokenised since the last call."""
    made = []
    rows = SpanTokenizer.rows

    def counting(transform, trajectory, *left_out):
        made.append(trajectory.id)
        return rows(transform, trajectory, *left_out)

    monkeypatch.setattr(SpanTokenizer, "rows", counting)

    def count():
        number = len(made)
        made.clear()
        return number

    return count


def test_a_second_run_reads_what_the_first_wrote(source, transform, tmp_path, count_runs):
    root = tmp_path / "store"
    first = TrajectoryDataset(str(source), transform, store=str(root))
    assert count_runs() == 21
    assert "(written)" in first.report.lines()[-1]
    second = TrajectoryDataset(str(source), transform, store=str(root))
    assert count_runs() == 0
    assert "(found there)" in second.report.lines()[-1]
    assert second.report.lines()[:-1] == first.report.lines()[:-1]
    assert second.report.skipped == first.report.skipped
    assert_same_rows(first.rows, second.rows)


def test_whatever_changes_the_rows_makes_them_anew(
    source, transform, tokenizer, tmp_path, react, count_runs, monkeypatch
):
    def load(transform=transform, **options):
        data = TrajectoryDataset(str(source), transform, store=str(tmp_path / "store"), **options)
        return count_runs(), data

    assert load()[0] == 21
    assert load()[0] == 0
    assert load(limit=5)[0] == 5
    assert load(filters={"max_steps": 3})[0] > 0
    assert load(format="react")[0] == 21
    assert load(SpanTokenizer(tokenizer, style="plain", max_seq_len=150))[0] == 21
    assert load(SpanTokenizer(tokenizer, style="chat", max_seq_len=200))[0] == 21
    tokenizer_of_another_file = type(tokenizer)(str(tokenizer.path))
    tokenizer_of_another_file.backend.add_tokens(["a cup is in"])
    assert load(SpanTokenizer(tokenizer_of_another_file, style="plain", max_seq_len=200))[0] == 21
    write_jsonl(source, [react(1, id="new")])
    made, data = load()
    assert (made, [row.id for row in data.rows]) == (1, ["new"])
    monkeypatch.setattr(store_module, "code_digest", lambda: "another version of the code")
    assert load()[0] == 1


def test_code_of_registered_formats_belongs_to_the_fingerprint(tmp_path, monkeypatch):
    formats.list_formats()
    monkeypatch.setattr(registry, "_FORMATS", dict(registry._FORMATS))
    before = CODE_DIGEST()
    module = tmp_path / "own_format_for_the_store.py"
    module.write_text(
        "from sad_components.formats import Format, register_format\n"
        "@register_format\nclass Own(Format):\n    name = 'own_for_the_store'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import own_format_for_the_store  # noqa: F401

    registered = CODE_DIGEST()
    assert registered != before
    module.write_text(module.read_text() + "# changed\n")
    assert CODE_DIGEST() not in (before, registered)


def test_what_fails_leaves_no_store(source, transform, tmp_path):
    root = tmp_path / "store"
    with open(source, "a") as handle:
        handle.write("{no json\n")
    with pytest.raises(TrajectoryError, match=r"rows\.jsonl:22: .*not JSON"):
        TrajectoryDataset(str(source), transform, store=str(root))
    assert [path.suffix for path in root.iterdir()] == [".lock"]


def test_leftovers_of_a_killed_writer_are_no_store(source, transform, tmp_path):
    root = tmp_path / "store"
    folder = Path(
        str(TrajectoryDataset(str(source), transform, store=str(root)).report.store)[:-10]
    )
    folder.rename(folder.with_name(folder.name + ".part"))
    (folder.with_name(folder.name + ".part") / store_module.META).unlink()
    again = TrajectoryDataset(str(source), transform, store=str(root))
    assert_same_rows(again.rows, TrajectoryDataset(str(source), transform).rows)
    assert not list(root.glob("*.part"))


def test_a_damaged_store_is_an_error_with_its_remedy(source, transform, tmp_path):
    root = tmp_path / "store"
    TrajectoryDataset(str(source), transform, store=str(root))
    (tokens,) = root.glob("*/tokens.i4")
    tokens.write_bytes(tokens.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"store .* is damaged: tokens\.i4 had .*delete"):
        TrajectoryDataset(str(source), transform, store=str(root))


_PROCESS = """
import sys, numpy as np
from sad_components.data import store
store.code_digest = lambda: "this code"
from sad_components.data import HFTokenizer, SpanTokenizer, TrajectoryDataset
transform = SpanTokenizer(HFTokenizer("shipped:household/tokenizer"), style="plain")
data = TrajectoryDataset(sys.argv[1], transform, store=sys.argv[2])
print(len(data), int(np.sum(data.lengths)), "written" in data.report.store)
"""


def test_of_two_processes_one_writes_and_both_read(tmp_path, react):
    path, root = tmp_path / "rows.jsonl", tmp_path / "store"
    write_jsonl(path, [react(k % 5 + 1, id=str(k)) for k in range(400)])
    command = [sys.executable, "-c", _PROCESS, str(path), str(root)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=120)[0].splitlines()[-1] for process in running]
    assert all(process.returncode == 0 for process in running)
    (first, second) = (line.rsplit(" ", 1) for line in printed)
    assert first[0] == second[0]
    assert {first[1], second[1]} == {"True", "False"}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_memory_does_not_grow_with_the_data(tmp_path, transform, react, suffix, monkeypatch):
    """Peak of Python's and numpy's allocations while a store is written and read through."""
    monkeypatch.setattr(sources, "PARQUET_BATCH", 20)
    records = [react(4, id=str(k)).to_dict() for k in range(300)]

    def peak(rows, in_memory=False):
        path = tmp_path / f"rows{rows}.{suffix}"
        if suffix == "jsonl":
            path.write_text("".join(json.dumps(record) + "\n" for record in records[:rows]))
        else:
            pq.write_table(pa.Table.from_pylist(records[:rows]), path)
        store = None if in_memory else str(tmp_path / "store")
        tracemalloc.start()
        data = TrajectoryDataset(str(path), transform, store=store)
        assert sum(len(row) > 0 for row in data.rows) == rows
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(55)  # imports, caches of the tokenizer and of regular expressions
    few, many = peak(75), peak(300)
    assert many < 1.3 * few, (few, many)
    assert peak(300, in_memory=True) > 1.5 * many
