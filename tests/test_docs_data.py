"""docs/data.md: every YAML block makes a data set, and what it shows printed is printed."""

from __future__ import annotations

import re
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from sad_components.data import HFTokenizer, SpanTokenizer, dataset_type
from sad_components.training.config import call
from sad_components.trajectory import Message, Trajectory, write_jsonl

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)


def episode(name: str, **known) -> Trajectory:
    """Two steps, worded by ``name``."""
    messages = [Message("user", f"Your task is to: find the {name}.")]
    for place in ("drawer", "desk"):
        messages += [
            Message("assistant", f"Thought: The {name} may be there.\nAction: open {place}"),
            Message("user", f"You open the {place}."),
        ]
    return Trajectory(messages, id=name, **known)


@pytest.fixture(autouse=True)
def in_folder_with_traces(tmp_path, monkeypatch):
    """The files that the page names, and a hub that has one dataset."""
    monkeypatch.chdir(tmp_path)
    won = [episode(name, success=True, score=1.0) for name in ("cup", "pen", "book", "key")]
    again = episode("cup", success=True, score=1.0)
    again.id = "cup-2"
    quiet = episode("lamp", success=True, score=1.0)
    for message in quiet.messages:
        message.weight = 0
    lost = episode("fork", success=False, score=0.0)
    poor = episode("plate", success=True, score=0.2)
    write_jsonl("my_traces.jsonl", [*won, again, lost, poor, episode("spoon"), quiet])
    Path("traces").mkdir()
    rows = [episode(name).to_dict() for name in ("cup", "vase", "coin")]
    pq.write_table(pa.Table.from_pylist(rows), "traces/part-0.parquet")

    def load_dataset(path, *args, _load=datasets.load_dataset, **kwargs):
        return iter(rows) if path == "owner/name" else _load(path, *args, **kwargs)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.fixture(scope="module")
def transform():
    return SpanTokenizer(HFTokenizer("shipped:household/tokenizer"), style="plain")


def built(block: str, transform) -> dict:
    """The block's data sets, as a recipe makes them."""
    cfg = OmegaConf.create(block)
    assert set(cfg) <= {"dataset", "heldout"}
    return {key: call(dataset_type(cfg[key]), cfg[key], key, transform=transform) for key in cfg}


def shown(marker: str) -> str:
    found = re.search(rf"<!-- {marker} -->\n```text\n(.*?)```", PAGE, re.S)
    assert found, f"docs/data.md has no block {marker!r}"
    return found[1]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_every_yaml_block_makes_data_sets(block, transform):
    for data in built(block, transform).values():
        assert len(data.rows) == len(data.lengths) > 0


def test_the_report_is_what_a_run_prints(transform):
    (block,) = (b for b in BLOCKS if "min_reward" in b)
    lines = built(block, transform)["dataset"].report.lines()
    assert "\n".join(lines) + "\n" == shown("report")


def test_the_mixture_report_is_what_a_run_prints(transform):
    (block,) = (b for b in BLOCKS if "sources:" in b)
    lines = built(block, transform)["dataset"].report.lines()
    assert "\n".join(lines) + "\n" == shown("mixture report")


def test_python_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(compile(code, "docs/data.md", "exec"), {})
    assert "filtered out" in capsys.readouterr().out


def test_sizes_on_disk_are_as_the_page_says():
    from sad_components.data.store import COLUMNS, RECORD

    per_token = sum(kind.itemsize for _, kind in COLUMNS.values())
    assert f"({per_token} bytes a token)" in PAGE
    assert f"Per row {RECORD.itemsize} bytes and the id" in PAGE
