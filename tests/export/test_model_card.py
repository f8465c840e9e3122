"""Model cards: what they say, where it comes from, and who reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from sad_components.cli import main
from sad_components.export.model_card import (
    export_card,
    front_matter,
    licence_of,
    student_card,
    transform_of,
    write_card,
    write_run_cards,
)

WON = {"rate": 0.75, "low": 0.628, "high": 0.842, "won": 45, "episodes": 60}


@pytest.fixture
def base(tmp_path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    return folder


@pytest.fixture
def summary(base) -> dict:
    return {
        "config": {
            "student": {
                "_component_": "sad_components.models.cut_student",
                "path": str(base),
                "num_layers": 15,
            },
            "teacher": {"_component_": "sad_components.models.from_pretrained", "path": str(base)},
            "transform": {"style": "plain", "max_seq_len": 1024},
            "dataset": {"source": "shipped:household/train"},
            "heldout": {"source": "shipped:household/heldout", "limit": 16},
            "loss": {
                "_component_": "sad_components.loss.FusedStructuredKDLoss",
                "reason": {"divergence": "forward_kl", "weight": 1.0, "temperature": 1.0},
                "act": {"divergence": "forward_kl", "weight": 2.0, "temperature": 1.0},
                "normalize": "span",
            },
            "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-3},
            "batch_size": 2,
            "gradient_accumulation_steps": 3,
        },
        "data": {
            "source": "shipped:household/train",
            "rows": 300,
            "kept": 299,
            "tokens": {"reason": 1234, "act": 567},
        },
        "heldout": {
            "before": {"kl_reason": 12.184, "ce": 14.7, "action_match": 0.0},
            "after": {"kl_reason": 1.049, "ce": 2.249, "action_match": 0.144},
            "teacher": {"ce": 1.953, "entropy": 2.093, "action_match": 0.096},
        },
        "parameters": {"student": 81_000_000, "teacher": 134_515_008},
        "steps": 36,
        "world_size": 2,
        "seed": 0,
        "dtype": "float32",
        "versions": {"torch": "2.13.0"},
    }


def test_what_a_card_says(summary):
    text = student_card(summary, title="My student")
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "apache-2.0"
    assert head["sad"]["transform"] == {"style": "plain", "max_seq_len": 1024}
    for line in (
        "# My student",
        "- student: 81,000,000 parameters, cut_student from weights of",
        "(num_layers 15)",
        "- licence of the base weights: apache-2.0",
        "- teacher: `",
        "`shipped:household/train`: 299 of 300 records, tokens: reason 1,234, act 567; licence: "
        "BSD-3-Clause",
        "- held out: `shipped:household/heldout` (the first 16)",
        "- act: divergence forward_kl, weight 2.0, temperature 1.0",
        "- normalize: span",
        "- optimizer: AdamW, lr 0.001",
        "- 36 steps of 12 rows, float32, seed 0, 2 process(es)",
        "| student before | 12.184 | 14.700 | 0.0% | - |",
        "| student after | 1.049 | 2.249 | 14.4% | - |",
        "| teacher | - | 1.953 | 9.6% | 2.093 |",
        "as plain text",
        "- torch: 2.13.0",
    ):
        assert line in text, line


def test_success_stands_with_its_interval(summary):
    played = {"success": WON, "steps": 9.1, "reasoning_length": 20.5, "reasoning_unit": "tokens"}
    text = student_card(
        summary, title="x", evaluation={**played, "environment": {"name": "household"}}
    )
    assert "success in household: 75.0% [62.8%, 84.2%] (95 % Wilson), 45 of 60 episodes" in text
    assert "- agent steps per episode: 9.1" in text
    assert "- reasoning: 20.5 tokens per step" in text


def test_what_is_not_known_is_said_to_be_unknown(summary):
    summary["config"]["student"] = {"_component_": "sad_components.models.from_scratch"}
    summary["config"]["dataset"] = {"source": "mine.jsonl"}
    summary.update(data={"source": "mine.jsonl", "rows": 2, "kept": 2}, heldout={})
    summary["config"]["teacher"] = None
    text = student_card(summary, title="x")
    assert "license: unknown" in text
    assert "from random weights" in text
    assert "licence of the base weights" not in text  # there are none
    assert "PreTrainedTokenizerFast.from_pretrained" in text
    assert "`mine.jsonl`: 2 of 2 records; licence: unknown" in text
    assert "teacher: none" in text
    assert "Not evaluated." in text
    assert "licence: cc-by-4.0" in student_card(summary, title="x", data_licence="cc-by-4.0")


@pytest.mark.parametrize(
    ("name", "content", "licence"),
    [
        ("README.md", "---\nlicense: mit\n---\n", "mit"),
        ("README.md", "no front matter", "unknown"),
        ("README.md", "---\nlicense: [a\n---\n", "unknown"),
        ("config.json", '{"license": "openrail"}', "openrail"),
        ("LICENSE", "          Apache License\n   Version 2.0, January 2004", "apache-2.0"),
        (
            "LICENSE",
            "MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining "
            "a copy\nof this software and associated documentation files",
            "mit",
        ),
        ("LICENSE", "Permission is hereby granted, free of charge, to any person or", "unknown"),
        ("LICENSE", "Redistribution and use in source and binary forms", "bsd-2-clause"),
        (
            "LICENSE",
            "Redistribution and use in source and binary\nforms\n3. Neither the name of the",
            "bsd-3-clause",
        ),
        ("LICENSE", "All rights reserved.", "unknown"),
        ("notes.txt", "mit", "unknown"),
    ],
)
def test_licence_of_a_folder(tmp_path, name, content, licence):
    (tmp_path / name).write_text(content)
    assert licence_of(tmp_path) == licence


def test_no_folder_has_no_licence(tmp_path):
    assert licence_of(tmp_path / "none") == licence_of(None) == "unknown"


def test_figures_with_rounding_say_so(summary):
    assert "Measured with" not in student_card(summary, title="x")
    summary["config"]["qat"] = "8da4w"
    assert "Measured with the rounding of 8da4w." in student_card(summary, title="x")


def test_the_transform_is_read_back(summary, tmp_path):
    write_card(tmp_path, student_card(summary, title="x"))
    assert transform_of(tmp_path) == {"style": "plain", "max_seq_len": 1024}
    assert front_matter(tmp_path)["library_name"] == "transformers"
    (tmp_path / "README.md").write_text("---\nsad: nonsense\n---\n")
    assert transform_of(tmp_path) == {}


def test_a_failure_leaves_the_older_card(tmp_path, monkeypatch):
    write_card(tmp_path, "old")

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr("sad_components.training.durable.os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_card(tmp_path, "new")
    assert (tmp_path / "README.md").read_text() == "old"


def test_quantised_students_get_a_card_without_the_success_of_others(summary, tmp_path):
    run = tmp_path / "run"
    for name in ("student", "quantized"):
        (run / name).mkdir(parents=True)
    played = {"success": WON, "environment": {"name": "household"}}
    lines = write_run_cards(run, summary, evaluation=played)
    assert [Path(line.removeprefix("card: ")).parent.name for line in lines] == [
        "student",
        "quantized",
    ]
    assert "75.0%" in (run / "student" / "README.md").read_text()
    assert "75.0%" not in (run / "quantized" / "README.md").read_text()
    assert "# run" in (run / "quantized" / "README.md").read_text()


class TestExport:
    ROW = {  # noqa: RUF012
        **{"runtime": "executorch", "bytes": 12_345_678, "error": 1.3e-2, "error_own": 3e-7},
        "greedy_equal": True,
    }

    def test_the_students_card_with_the_exports_figures(self, summary, tmp_path):
        write_card(tmp_path, student_card(summary, title="T"))
        text = export_card(tmp_path, "8da4w", self.ROW)
        assert "- 8da4w: 12.3 MB of weights, runtime executorch" in text
        assert "against the student in fp32: 1.3e-02" in text
        assert "with the same numbers: 3.0e-07" in text
        assert "equal to the student's" in text
        assert "# T" in text
        assert "| student after | 1.049 |" in text
        assert "sad chat <this folder>" in text
        assert "AutoModelForCausalLM" not in text
        assert "- torch: 2.13.0" in text

    def test_a_folder_that_transformers_loads_keeps_its_usage(self, summary, tmp_path):
        write_card(tmp_path, student_card(summary, title="T"))
        text = export_card(tmp_path, "hf", {"runtime": "eager", "bytes": 5, "not_run": "no kernel"})
        assert "AutoModelForCausalLM" in text
        assert "written, not run where it was made: no kernel" in text
        assert text.index("## Export") < text.index("## How to run")

    def test_a_student_without_a_card(self, tmp_path):
        text = export_card(tmp_path, "q8_0", {"runtime": "gguf", "bytes": 5})
        assert text.startswith("---\nlicense: unknown\n---\n")
        assert "llama.cpp (`model.gguf`)" in text


class TestCommand:
    def test_adds_what_was_played(self, summary, tmp_path, capsys):
        run = tmp_path / "run"
        (run / "student").mkdir(parents=True)
        (run / "summary.json").write_text(json.dumps(summary))
        results = tmp_path / "results.json"
        results.write_text(
            json.dumps({"environment": {"name": "household"}, "policies": {"a": {"success": WON}}})
        )
        assert main(["card", str(run), "--evaluation", str(results), "--title", "T"]) == 0
        assert "card: " in capsys.readouterr().out
        text = (run / "student" / "README.md").read_text()
        assert "# T" in text
        assert "75.0% [62.8%, 84.2%]" in text
        assert main(["card", str(run), "--evaluation", str(results), "--policy", "b"]) == 2
        assert "--policy names one of a" in capsys.readouterr().err

    def test_no_run(self, tmp_path, capsys):
        assert main(["card", str(tmp_path)]) == 2
        assert "holds no summary.json and student" in capsys.readouterr().err
