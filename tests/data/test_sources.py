"""Raw rows of files and of the hub: as written, one at a time, and errors that help."""

from __future__ import annotations

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sad_components.data import SpanTokenizer, TrajectoryDataset
from sad_components.data.sources import HubRows, JsonlFiles, ParquetFiles, as_written, open_source
from sad_components.trajectory import TrajectoryError

USER = {"role": "user", "content": "What is in the drawer?"}


def call(name, **arguments):
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }


#: Rows whose objects differ in their keys, as chats with tools do.
RECORDS = [
    {
        "id": "a",
        "success": True,
        "messages": [
            USER,
            call("open", place="drawer 1"),
            {"role": "tool", "tool_call_id": "c1", "content": "A cup."},
            {"role": "assistant", "content": "A cup."},
        ],
    },
    {"id": "b", "messages": [USER, call("wait", seconds=2), {"role": "tool", "content": "Done."}]},
]


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_parquet(path, records, **options):
    pq.write_table(pa.Table.from_pylist(records), path, **options)
    return path


def records_of(source, **options):
    return [raw.record for raw in open_source(str(source), **options).rows()]


def test_parquet_rows_read_as_they_were_written(tmp_path):
    """Arrow gives every message and every call all keys; the nulls are no part of the row."""
    path = write_parquet(tmp_path / "rows.parquet", RECORDS)
    (stored,) = {str(row) for row in pq.read_table(path).to_pylist()[1:]}
    assert "None" in stored
    assert records_of(path) == RECORDS


def test_the_same_rows_from_jsonl_and_parquet_are_the_same_tokens(tmp_path, tokenizer):
    transform = SpanTokenizer(tokenizer, style="plain")
    lines = TrajectoryDataset(str(write_jsonl(tmp_path / "r.jsonl", RECORDS)), transform)
    table = TrajectoryDataset(str(write_parquet(tmp_path / "r.parquet", RECORDS)), transform)
    assert [row.to_sample() for row in lines.rows] == [row.to_sample() for row in table.rows]
    assert lines.report.format == table.report.format


@pytest.mark.parametrize("column", ["text", "raw", "transcript"])
def test_parquet_with_a_column_of_flat_text(tmp_path, tokenizer, column):
    text = "Thought: t\nAction: go\nObservation: o\nThought: u\nAction: finish\n"
    path = write_parquet(tmp_path / "text.parquet", [{"name": "x", column: text}] * 3)
    data = TrajectoryDataset(str(path), SpanTokenizer(tokenizer, style="plain"))
    assert [row.id for row in data.rows] == ["row 1", "row 2", "row 3"]


def test_jsonl_rows_may_differ_in_type_at_any_place(tmp_path):
    """Where the JSON reader of ``datasets`` gives up: a late row with text parts."""
    plain = {"id": "p", "messages": [USER]}
    parts = {"id": 7, "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}
    path = write_jsonl(tmp_path / "rows.jsonl", [plain] * 3 + [parts])
    assert records_of(path) == [plain] * 3 + [parts]


def test_folder_and_glob_read_file_after_file(tmp_path):
    for name in ("b.jsonl", "a.jsonl"):
        write_jsonl(tmp_path / name, [{"id": name}])
    (tmp_path / "notes.md").write_text("not data")
    names = [{"id": "a.jsonl"}, {"id": "b.jsonl"}]
    assert records_of(tmp_path) == names
    assert records_of(tmp_path / "*.jsonl") == names
    assert records_of(tmp_path / "b*.jsonl") == names[1:]
    assert next(iter(open_source(str(tmp_path)).rows())).where == "a.jsonl line 1"
    write_parquet(tmp_path / "c.parquet", [{"id": "c"}])
    with pytest.raises(ValueError, match="holds JSONL and Parquet files"):
        open_source(str(tmp_path))
    assert records_of(tmp_path / "*.parquet") == [{"id": "c"}]


def test_parquet_files_of_other_schemas_stand_in_one_folder(tmp_path):
    write_parquet(tmp_path / "a.parquet", [{"id": "a", "score": 1.0}])
    write_parquet(tmp_path / "b[1].parquet", [{"id": 2, "text": "x"}])
    assert records_of(tmp_path) == [{"id": "a", "score": 1.0}, {"id": 2, "text": "x"}]


def test_parquet_is_not_read_whole(tmp_path):
    path = write_parquet(tmp_path / "rows.parquet", [{"id": str(i)} for i in range(5000)])
    rows = open_source(str(path)).rows()
    assert next(rows).record == {"id": "0"}
    rows.close()


def test_missing_files_name_near_ones(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{}])
    with pytest.raises(FileNotFoundError, match=r"near names: .*train\.jsonl"):
        open_source(str(tmp_path / "trian.jsonl"))
    with pytest.raises(FileNotFoundError, match="no trajectory file"):
        open_source(str(tmp_path / "sub" / "x.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \.jsonl, .* file in the folder"):
        open_source(str(tmp_path / "empty"))


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 this is no table PAR1")
    with pytest.raises(TrajectoryError, match=r"rows\.parquet cannot be read as Parquet"):
        records_of(path)
    bad = tmp_path / "rows.jsonl"
    bad.write_text('{"a": 1}\n[2]\n')
    with pytest.raises(TrajectoryError, match=r"rows\.jsonl:2: a row is a JSON object"):
        records_of(bad)


def test_hub_ids_are_streamed_with_split_name_and_revision(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return iter([{"id": "h", "messages": [USER, {**USER, "name": None}], "score": None}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (raw,) = open_source("owner/some.name", split="test", name="en", revision="v2").rows()
    assert raw == ("row 1", {"id": "h", "messages": [USER, USER]})
    ((args, kwargs),) = asked
    assert args == ("owner/some.name", "en")
    assert kwargs == {"split": "test", "revision": "v2", "streaming": True}
    assert open_source("owner/name") == HubRows("owner/name", split="train")


def test_hub_that_cannot_be_reached_is_an_error_in_a_sentence():
    with pytest.raises(TrajectoryError, match=r"cannot load split 'train' of 'owner/name' from"):
        next(iter(open_source("owner/name").rows()))


def test_what_exists_is_never_asked_from_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "owner"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="no trajectory file 'owner/name'"):
        open_source("owner/name")
    write_jsonl(folder / "name", [{"id": "here"}])
    assert isinstance(open_source("owner/name"), JsonlFiles)
    (folder / "set").mkdir()
    write_parquet(folder / "set" / "0.parquet", [{"id": "p"}])
    assert isinstance(open_source("owner/set"), ParquetFiles)
    with pytest.raises(FileNotFoundError, match=r"no trajectory file 'other/name\.jsonl'"):
        open_source("other/name.jsonl")


def test_hub_options_for_a_file_are_refused(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{}])
    with pytest.raises(ValueError, match="split belongs to a hub dataset"):
        open_source(str(path), split="train")


def test_a_branch_cannot_be_stored():
    with pytest.raises(ValueError, match="needs revision, the 40 digits of a commit"):
        HubRows("owner/name", revision="main").identity()
    assert HubRows("owner/name", revision="0" * 40).identity()["revision"] == "0" * 40


def test_nulls_go_at_any_depth_but_not_from_lists():
    assert as_written({"a": None, "b": [{"c": None}, None, 0], "d": ""}) == {
        "b": [{}, None, 0],
        "d": "",
    }
