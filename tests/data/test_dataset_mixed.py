"""Several sources as one data set: order, groups, shares, filters across them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from omegaconf import OmegaConf

from sad_components.data import MixedDataset, SpanTokenizer, TrajectoryDataset, dataset_type
from sad_components.data.store import StoredRows
from sad_components.trajectory import TrajectoryError, write_jsonl


@pytest.fixture
def transform(tokenizer):
    return SpanTokenizer(tokenizer, style="plain")


@pytest.fixture
def files(tmp_path, react):
    """Two files: 3 rows, and 2 rows of which the second is the first file's last."""
    last = react(5, id="a3", success=True)
    write_jsonl(tmp_path / "a.jsonl", [react(1, id="a1"), react(2, id="a2", success=True), last])
    again = react(5, id="b2", success=True)
    write_jsonl(tmp_path / "b.jsonl", [react(4, id="", success=False), again])
    return [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]


def mixed(files, transform, *keys, **options):
    entries = keys or ({}, {})
    sources = [{"source": f, **entry} for f, entry in zip(files, entries)]
    return MixedDataset(sources, transform, **options)


def test_rows_stand_source_after_source(files, transform):
    data = mixed(files, transform)
    assert [row.id for row in data.rows] == ["a1", "a2", "a3", f"{files[1]} line 1", "b2"]
    assert data.groups.tolist() == [0, 0, 0, 1, 1]
    assert data.weights is None
    alone = [row for f in files for row in TrajectoryDataset(f, transform).rows]
    for mine, theirs in zip(data.rows, alone):
        np.testing.assert_array_equal(mine.tokens, theirs.tokens)


def test_weights_are_shares_of_an_epoch_and_reported(files, transform):
    data = mixed(files, transform, {"weight": 3}, {"weight": 1.0})
    assert data.weights == [0.75, 0.25]
    lines = data.report.lines()
    assert lines[0] == "mixture of 2 sources, 5 rows an epoch:"
    assert lines[1].startswith(f"  75.0% of an epoch, each row seen 1.25 times: {files[0]}: 3 of 3")
    assert lines[2].startswith(f"  25.0% of an epoch, each row seen 0.62 times: {files[1]}: 2 of 2")
    plain = data.report.to_dict()
    assert (plain["rows"], plain["kept"], plain["weights"]) == (5, 5, [0.75, 0.25])
    assert plain["tokens"]["act"] == int(data.table.counts[:, 2].sum())
    assert json.loads(json.dumps(plain))["sources"][1]["source"] == files[1]


def test_entries_have_their_own_limit_filters_and_format(files, transform):
    data = mixed(
        files,
        transform,
        {"limit": 2, "filters": {"success": None}, "format": "react"},
        {"filters": {"min_steps": 5}},
        filters={"success": True},
    )
    assert [row.id for row in data.rows] == ["a1", "a2", "b2"]
    first, second = data.report.parts
    assert (first.rows, first.format) == (2, "react, set in the config")
    assert second.dropped == {"success is false": [f"{files[1]} line 1"]}


def test_duplicates_are_dropped_across_sources(files, transform):
    data = mixed(files, transform, filters={"duplicates": "drop"})
    assert [row.id for row in data.rows][:3] == ["a1", "a2", "a3"]
    assert data.report.parts[1].dropped == {"a duplicate of an earlier row": ["b2"]}
    only_first = mixed(files, transform, {"filters": {"duplicates": "drop"}}, {})
    assert len(only_first) == 5
    only_second = mixed(files, transform, {}, {"filters": {"duplicates": "drop"}})
    assert len(only_second) == 4


def test_a_duplicate_of_what_a_filter_dropped_is_kept(files, transform):
    data = mixed(
        files, transform, {"filters": {"max_tokens": 150}}, {}, filters={"duplicates": "drop"}
    )
    assert "a3" not in [row.id for row in data.rows]
    assert "b2" in [row.id for row in data.rows]


def test_a_stored_mixture_is_the_one_in_memory(files, transform, tmp_path):
    keys = ({"weight": 1}, {"weight": 2})
    memory = mixed(files, transform, *keys, filters={"duplicates": "drop"})
    for _ in range(2):
        stored = mixed(
            files, transform, *keys, filters={"duplicates": "drop"}, store=str(tmp_path / "s")
        )
        assert isinstance(stored.rows, StoredRows)
        assert [row.to_sample() for row in stored.rows] == [row.to_sample() for row in memory.rows]
        assert stored.groups.tolist() == memory.groups.tolist() == [0, 0, 0, 1]
        assert stored.report.parts[1].dropped == memory.report.parts[1].dropped
    other_weights = mixed(
        files,
        transform,
        {"weight": 5},
        {"weight": 2},
        filters={"duplicates": "drop"},
        store=str(tmp_path / "s"),
    )
    assert "found there" in other_weights.report.lines()[-1]
    assert sum("found there" in line for line in other_weights.report.lines()) == 1


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], r"sources is a list of at least one source; got \[\]"),
        (None, "sources is a list of at least one source; got None"),
        ([{"source": "A", "wieght": 1}], r"sources\[0\] takes no 'wieght' .*'weight'"),
        ([{"weight": 1}], r"sources\[0\] cannot be read: .*'source'"),
        (["A"], r"sources\[0\] is a mapping of keys; got 'A'"),
        ([{"source": "A", "weight": 1}, {"source": "B"}], r"or none has one; got None in .*\[1\]"),
        ([{"source": "A", "weight": 0}], r"a weight above 0, .* got 0 in sources\[0\]"),
        ([{"source": "A", "weight": "2"}], "a weight above 0, .* got '2'"),
        ([{"source": "A", "filters": {"sucess": 1}}], r"sources\[0\]\.filters takes no 'sucess'"),
    ],
)
def test_wrong_entries_are_named(files, transform, sources, message):
    named = dict(zip("AB", files))
    if sources:
        sources = [{**s, "source": named[s["source"]]} if "source" in s else s for s in sources]
    with pytest.raises(ValueError, match=message):
        MixedDataset(sources, transform)


def test_a_source_without_a_row_of_use_is_an_error(files, transform):
    with pytest.raises(TrajectoryError, match=r"(?s)no row can be learnt from.*b\.jsonl: 0 of 2"):
        mixed(files, transform, {}, {"filters": {"max_steps": 1}})


def test_configs_choose_the_class(files, transform):
    node = OmegaConf.create(
        {"sources": [{"source": files[0], "weight": 1, "filters": {"success": True}}]}
    )
    assert dataset_type(node) is MixedDataset
    data = MixedDataset(**node, transform=transform)
    assert [row.id for row in data.rows] == ["a2", "a3"]
    assert dataset_type(OmegaConf.create({"source": files[0]})) is TrajectoryDataset
