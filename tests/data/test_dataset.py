"""One source as a data set, and the report of what became of every row."""

from __future__ import annotations

import json

import pytest

from sad_components.data import SpanTokenizer, TrajectoryDataset
from sad_components.trajectory import TrajectoryError, write_jsonl


@pytest.fixture
def transform(tokenizer):
    return SpanTokenizer(tokenizer, style="plain")


@pytest.fixture
def write(tmp_path):
    def to_file(trajectories, name="rows.jsonl"):
        path = tmp_path / name
        write_jsonl(path, trajectories)
        return str(path)

    return to_file


def test_report_counts_and_names_what_was_skipped(transform, write, react):
    unlearnt = react(1, id="quiet")
    unlearnt.messages[1].weight = 0
    data = TrajectoryDataset(write([react(2, id="a"), unlearnt, react(3, id="b")]), transform)
    report = data.report
    assert (report.rows, report.kept) == (3, 2)
    assert [r.id for r in data.rows] == ["a", "b"]
    assert list(report.skipped.values()) == [["quiet"]]
    assert "at least one REASON or ACT" in next(iter(report.skipped))
    lines = "\n".join(report.lines())
    assert "2 of 3 rows" in lines
    assert "skipped 1 (quiet)" in lines
    assert report.tokens["reason"] > 0
    assert sum(report.tokens.values()) == sum(map(len, data.rows))
    assert json.loads(json.dumps(report.to_dict()))["skipped"] == report.to_dict()["skipped"]


def test_report_counts_truncation(tokenizer, write, react):
    transform = SpanTokenizer(tokenizer, style="plain", max_seq_len=120)
    data = TrajectoryDataset(write([react(9), react(1)]), transform)
    assert data.report.truncated == 1
    assert data.report.dropped_tokens == data.rows[0].truncated > 0
    assert "cut at a step boundary to fit max_seq_len: 1 rows" in "\n".join(data.report.lines())


def test_limit_reads_no_further(transform, write, react):
    data = TrajectoryDataset(write([react(1, id=str(i)) for i in range(5)]), transform, limit=2)
    assert [data[i].id for i in range(len(data))] == ["0", "1"]


def test_rows_of_other_formats_are_skipped_with_their_reason(transform, tmp_path):
    path = tmp_path / "mixed.jsonl"
    text = "Thought: t\nAction: go\nObservation: o\nThought: u\nAction: finish\n"
    lines = [{"id": "good", "text": text}, {"id": "prose", "text": "Once upon a time."}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = TrajectoryDataset(str(path), transform)
    assert [r.id for r in data.rows] == ["good"]
    assert ["prose"] in data.report.skipped.values()
    assert "react" in data.report.format


def test_canonical_rows_may_name_different_formats(transform, write, react):
    from sad_components.trajectory import Message, Trajectory

    other = Trajectory([Message("user", "q"), Message("assistant", "Hi.")], id="o", format="openai")
    data = TrajectoryDataset(write([react(1, id="r"), other]), transform)
    assert [r.id for r in data.rows] == ["r", "o"]


def test_bad_files_say_what_is_wrong(transform, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no trajectory file .*none.jsonl"):
        TrajectoryDataset(str(tmp_path / "none.jsonl"), transform)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n")
    with pytest.raises(TrajectoryError, match="the file is empty"):
        TrajectoryDataset(str(path), transform)
    path.write_text('{"messages": []}\n{"a":\n')
    with pytest.raises(TrajectoryError, match=r"rows.jsonl:2: .*not JSON"):
        TrajectoryDataset(str(path), transform)
    path.write_text("[1]\n")
    with pytest.raises(TrajectoryError, match=r"rows.jsonl:1: a row is a JSON object"):
        TrajectoryDataset(str(path), transform)


def test_no_row_of_use_is_an_error_with_the_report(transform, write, react):
    unlearnt = react(1, id="quiet")
    unlearnt.messages[1].weight = 0
    with pytest.raises(TrajectoryError, match=r"(?s)no row can be learnt from.*0 of 1.*quiet"):
        TrajectoryDataset(write([unlearnt]), transform)


def test_the_shipped_trajectories_are_all_kept(transform):
    data = TrajectoryDataset("shipped:household/heldout", transform)
    assert data.report.kept == data.report.rows
    assert data.lengths.tolist() == [len(row) for row in data.rows]
    with pytest.raises(FileNotFoundError, match="there is: shipped:household/heldout"):
        TrajectoryDataset("shipped:household/none", transform)


def test_each_row_of_a_file_has_its_own_format_decided(transform, tmp_path):
    """As `sad spans` does; a row that no format fits does not take the others with it."""
    path = tmp_path / "mixed.jsonl"
    lines = [
        {
            "id": "react",
            "text": "Thought: t\nAction: go\nObservation: o\nThought: u\nAction: stop\n",
        },
        {
            "id": "alfworld",
            "text": "You are in a room.\n> think: I look.\nOK.\n> go to desk 1\nA desk.\n",
        },
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = TrajectoryDataset(str(path), transform)
    assert [r.id for r in data.rows] == ["react", "alfworld"]
    assert all((r.span_ids == 1).any() and (r.span_ids == 2).any() for r in data.rows)
    assert "react fits 1 of 2" in data.report.format
    assert "alfworld fits 1 of 2" in data.report.format


def test_format_of_the_source_wins_over_the_transforms(transform, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "Thought: t\nAction: go\nObservation: o\nAction: stop\n"}))
    data = TrajectoryDataset(str(path), transform, format="react")
    assert data.report.format == "react, set in the config"
    assert data[0].id == "line 1"
    with pytest.raises(ValueError, match="no transcript format 'raect'"):
        TrajectoryDataset(str(path), transform, format="raect")


def test_limit_is_a_count(transform, write, react):
    for bad in (0, -1, True):
        with pytest.raises(ValueError, match="limit is at least 1"):
            TrajectoryDataset(write([react()]), transform, limit=bad)


def test_rare_reasons_are_counted_together(transform, write, react):
    from sad_components.data import DataReport

    report = DataReport("x", rows=100, kept=60)
    for i in range(12):
        report.skipped[f"reason {i}"] = [f"{i}.{k}" for k in range(12 - i)]
    lines = report.lines()
    assert lines[1] == "  skipped 12 (0.0, 0.1, 0.2, 0.3, 0.4, ..): reason 0"
    assert lines[-1] == "  skipped 10 more, for 4 other reasons"
    assert len(lines) == 10


def test_filters_are_reported_with_ids_and_reasons(transform, write, react):
    rows = [
        react(2, id="won", success=True),
        react(3, id="lost", success=False),
        react(2, id="unknown"),
        react(2, id="again", success=True),
        react(9, id="long", success=True),
    ]
    filters = {"success": True, "duplicates": "drop", "max_steps": 5}
    data = TrajectoryDataset(write(rows), transform, filters=filters)
    assert [row.id for row in data.rows] == ["won"]
    assert data.report.dropped == {
        "success is false": ["lost"],
        "no success recorded": ["unknown"],
        "a duplicate of an earlier row": ["again"],
        "more steps than max_steps 5": ["long"],
    }
    assert not data.report.skipped
    assert "  filtered out 1 (lost): success is false" in data.report.lines()


def test_tokens_are_counted_before_the_cut(tokenizer, write, react):
    short = SpanTokenizer(tokenizer, style="plain", max_seq_len=120)
    whole = len(SpanTokenizer(tokenizer, style="plain").rows(react(9))[0])
    path = write([react(9, id="long"), react(1, id="short")])
    kept = TrajectoryDataset(path, short, filters={"min_tokens": whole})
    assert [row.id for row in kept.rows] == ["long"]
    assert kept.report.dropped == {f"fewer tokens than min_tokens {whole}": ["short"]}
    assert [r.id for r in TrajectoryDataset(path, short, filters={"max_tokens": 120})] == ["short"]


def test_what_every_filter_drops_is_an_error_that_says_so(transform, write, react):
    with pytest.raises(TrajectoryError, match=r"(?s)no row can be.*filtered out 1 \(t\): no succ"):
        TrajectoryDataset(write([react()]), transform, filters={"success": True})


def test_wrong_keys_of_filters_name_the_nearest(transform, write, react):
    with pytest.raises(ValueError, match=r"filters takes no 'sucess' \(did you mean 'success'\?\)"):
        TrajectoryDataset(write([react()]), transform, filters={"sucess": True})


def test_a_file_of_something_else_is_named(transform, tmp_path):
    path = tmp_path / "products.jsonl"
    path.write_text('{"price": 3}\n')
    with pytest.raises(TrajectoryError, match=r"products\.jsonl: no transcript format fits"):
        TrajectoryDataset(str(path), transform)
