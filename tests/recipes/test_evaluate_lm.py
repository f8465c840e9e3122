"""The recipe evaluate_lm on tiny students, and ``sad lm-eval``."""

from __future__ import annotations

import json

import pytest
from lm_students import make_student
from loading import ROOT, load_module
from omegaconf import DictConfig, OmegaConf

from sad_components._lm_eval_plugin import TASKS
from sad_components.cli import main
from sad_components.lm_harness.run import difference, figures_of, format_students, whole_spec
from sad_components.models.checkpoint import load_hf_folder


@pytest.fixture
def config(tmp_path, monkeypatch) -> DictConfig:
    """The shipped config, on the cheapest task."""
    monkeypatch.chdir(tmp_path)
    cfg = OmegaConf.load(ROOT / "configs" / "tiny" / "evaluate_lm.yaml")
    cfg.tasks = ["sad_common_sense"]
    cfg.limit = 6
    return cfg


def run(cfg: DictConfig) -> dict:
    recipe = load_module("recipes/evaluate_lm.py").EvaluateLMRecipe(cfg)
    recipe.setup()
    return recipe.evaluate()


def test_students_side_by_side(config, tmp_path, capsys):
    config.tasks = ["sad_common_sense", "sad_span_ppl"]
    results = run(config)
    assert list(results) == ["whole", "half"]
    for name in ("whole", "half"):
        (file,) = (tmp_path / "runs/evaluate_lm/tiny" / name).glob("results_*.json")
        content = json.loads(file.read_text())
        assert content["config"]["model"] == "sad"
        assert content["versions"] == {"sad_common_sense": 1.0, "sad_span_ppl": 1.0}
        assert content["n-samples"]["sad_common_sense"] == {"original": 64, "effective": 6}
        (samples,) = file.parent.glob("samples_sad_common_sense_*.jsonl")
        assert len(samples.read_text().splitlines()) == 6
    table = (tmp_path / "runs/evaluate_lm/tiny/table.txt").read_text()
    assert table.strip() in capsys.readouterr().out
    assert "sad_common_sense  acc: half - whole = " in table
    assert [line for line in table.splitlines() if line.startswith("sad_span_ppl  reason_nll ")]
    built = load_hf_folder(tmp_path / "runs/evaluate_lm/tiny/half/student")
    assert built.config["num_hidden_layers"] == 1


def test_a_folder_and_a_changed_task(config, tmp_path):
    folder = make_student("smollm2", tmp_path / "student")
    question = {
        "id": "1",
        "question": "Where is milk kept?",
        "choices": {"text": ["fridge", "oven"], "label": ["A", "B"]},
        "answerKey": "A",
    }
    (tmp_path / "arc.jsonl").write_text(json.dumps(question) + "\n")
    config.students = {"one": {"pretrained": str(folder)}}
    # a standard task's own file, on local data
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "arc.yaml").write_text(
        "task: my_arc\ndataset_path: allenai/ai2_arc\ndataset_name: ARC-Easy\n"
        "output_type: multiple_choice\ntraining_split: train\nvalidation_split: validation\n"
        'test_split: test\ndoc_to_text: "Question: {{question}}\\nAnswer:"\n'
        'doc_to_target: "{{choices.label.index(answerKey)}}"\n'
        'doc_to_choice: "{{choices.text}}"\n'
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    config.include_path = [str(tmp_path / "tasks")]
    config.tasks = [
        {
            "task": "my_arc",
            "dataset_path": "json",
            "dataset_name": None,
            "training_split": None,
            "validation_split": None,
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / "arc.jsonl")}},
        }
    ]
    found = run(config)["one"]["results"]["my_arc"]
    assert found["acc,none"] in (0.0, 1.0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"students": {}}, "students and tasks each name at least one"),
        ({"students": {"a": {"dtype": "float32"}}}, "students.a names either a folder"),
        ({"tasks": ["no_such_task"]}, "no task 'no_such_task'"),
        ({"tasks": [{"task": "no_such_task"}]}, "changes are of a known task"),
        ({"student": {}}, "student"),
        ({"students": {"a": {"build": {"_component_": "sad_components.models.from_scratch"}}}},
         "its tokenizer is not known"),
    ],
)  # fmt: skip
def test_mistakes_are_named(config, change, says):
    for key, value in change.items():
        config[key] = value
    with pytest.raises(ValueError, match=says):
        run(config)


def test_results_are_not_lost(config, tmp_path):
    folder = tmp_path / "runs/evaluate_lm/tiny/whole"
    folder.mkdir(parents=True)
    (folder / "results_2026.json").write_text("{}")
    config.overwrite = False
    with pytest.raises(ValueError, match="holds results"):
        run(config)


class TestTable:
    RESULTS = {  # noqa: RUF012
        "a": {
            "results": {"t": {"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.1, "f,x": 2.0}},
            "samples": {"t": [{"doc_id": i, "acc": float(i % 2)} for i in range(40)]},
        },
        "b": {
            "results": {"t": {"alias": "t", "acc,none": 1.0, "acc_stderr,none": "N/A"}},
            "samples": {"t": [{"doc_id": i, "acc": 1.0} for i in range(40)]},
        },
    }

    def test_figures(self):
        assert list(figures_of(self.RESULTS["a"])) == [
            ("t", "acc", 0.5, 0.1),
            ("t", "f (x)", 2.0, None),
        ]

    def test_columns_and_differences(self):
        lines = format_students(self.RESULTS).splitlines()
        assert lines[0].split() == ["a", "b"]
        assert lines[1].split() == ["t", "acc", "0.5000", "±0.1000", "1.0000"]
        assert lines[2].split() == ["t", "f", "(x)", "2.0000", "-"]
        assert lines[3].startswith("t  acc: b - a = +0.5000 [+0.3")

    def test_no_difference_of_what_is_no_mean(self):
        weighed = {"samples": {"t": [{"doc_id": 0, "nll": (1.0, 2)}]}}
        assert difference(weighed, weighed, "t", "nll") is None
        assert difference(self.RESULTS["a"], weighed, "t", "acc") is None


class TestCommand:
    def test_path_of_the_tasks(self, capsys):
        assert main(["lm-eval", "--tasks-path"]) == 0
        assert capsys.readouterr().out.strip() == str(TASKS)
        assert (TASKS / "sad_span_ppl.yaml").is_file()

    def test_help(self, capsys):
        assert main(["lm-eval"]) == 2
        assert "sad lm-eval run --model sad" in capsys.readouterr().out

    def test_task_managers_know_our_tasks(self, monkeypatch):
        import lm_eval.tasks

        from sad_components.lm_harness.command import _know_our_tasks

        monkeypatch.setattr(lm_eval.tasks, "TaskManager", lm_eval.tasks.TaskManager)
        _know_our_tasks()
        _know_our_tasks()
        manager = lm_eval.tasks.TaskManager(include_defaults=False)
        assert "sad_span_ppl" in manager.all_subtasks
        spec = whole_spec(manager, {"task": "sad_span_ppl", "num_fewshot": 0})
        assert callable(spec["custom_dataset"])
