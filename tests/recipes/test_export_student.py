"""The export recipe: every export is run and compared; what is wrong is not kept."""

from __future__ import annotations

import importlib.util
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from exports import needs_executorch, write_student
from loading import load_module
from omegaconf import OmegaConf

from sad_components import cli
from sad_components.export import read_manifest
from sad_components.models.quantized import Scheme, load_quantized, quantize_folder
from sad_components.training.config import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def recipe_class():
    return load_module("recipes/export_student.py").ExportStudentRecipe


@pytest.fixture
def cfg(tmp_path):
    """As after a training run: its folder holds the config and the student."""
    run = tmp_path / "run"
    write_student(run / "student", num_hidden_layers=1, max_position_embeddings=1024)
    trained = OmegaConf.load(ROOT / "configs" / "tiny" / "structured_kd.yaml")
    OmegaConf.save(trained, run / "config.yaml")
    cfg = OmegaConf.load(ROOT / "configs" / "tiny" / "export_student.yaml")
    cfg.run, cfg.output_dir = str(run), str(tmp_path / "out")
    cfg.compare = {"rows": 1, "prompts": 1, "new_tokens": 4, "prefill": 16}
    return cfg


def export(recipe_class, cfg):
    recipe = recipe_class(cfg)
    recipe.setup()
    recipe.export()
    return json.loads((Path(cfg.output_dir) / "export.json").read_text())


@needs_executorch
def test_the_shipped_config(recipe_class, cfg, capsys):
    """Its four exports, their figures, and what lies in the folders."""
    found = export(recipe_class, cfg)
    rows = found["exports"]
    assert list(rows) == ["eager fp32", "hf", "int8_weight_only", "fp32", "8da4w"]
    assert rows["hf"]["error"] < 1e-6
    assert 1e-4 < rows["int8_weight_only"]["error"] < 0.05
    assert rows["fp32"]["error"] < 1e-5
    assert rows["fp32"]["greedy_equal"] is True
    assert rows["8da4w"]["error_own"] < 2e-2 < rows["8da4w"]["error"]
    assert rows["8da4w"]["bytes"] < rows["fp32"]["bytes"]
    for row in rows.values():
        assert row["decode_tokens_per_s"] > 0
        assert row["prefill_tokens_per_s"] > 0
    out = Path(cfg.output_dir)
    assert sorted(p.name for p in out.iterdir()) == sorted([*list(rows)[1:], "export.json"])
    manifest = read_manifest(out / "8da4w")
    assert manifest.max_seq_len == 512
    assert manifest.quantization == {
        "linear": "8da4w",
        "head": "8da8w",
        "embedding": "int8",
        "group_size": 32,
    }
    assert manifest.transform["style"] == "plain"
    shown = capsys.readouterr().out
    assert "own error" in shown
    assert "exports -> " in shown
    check_that_they_play(Path(cfg.run), out)


def check_that_they_play(run: Path, out: Path) -> None:
    """Eager, quantised eager and programs through the evaluation; fp32 plays as eager does."""
    policies = "sad_components.evaluation.policies"
    models = "sad_components.models"
    limits = {"max_new_tokens": 4}
    tokenizer = {"_component_": "sad_components.data.HFTokenizer", "path": str(run / "student")}
    cfg = OmegaConf.create(
        {
            "environment": {
                "name": "rooms.Rooms",
                "options": {"tasks": 3, "max_steps": 2},
                "batch_size": 3,
            },
            "tasks": {"count": 3},
            "policies": {
                name: {
                    "_component_": f"{policies}.model_policy",
                    "model": {"_component_": f"{models}.{loader}", "path": str(folder)},
                    "tokenizer": tokenizer,
                    "transform": {"style": "plain"},
                    **limits,
                }
                for name, loader, folder in (
                    ("eager", "from_pretrained", run / "student"),
                    ("int8", "quantized.load_quantized", out / "int8_weight_only"),
                )
            }
            | {
                f"pte_{name}": {
                    "_component_": f"{policies}.exported_policy",
                    "path": str(out / name),
                    "sessions": 2,
                    **limits,
                }
                for name in ("fp32", "8da4w")
            },
            "output_dir": str(out / "played"),
        }
    )
    recipe = load_module("recipes/evaluate_agent.py").EvaluateAgentRecipe(cfg)
    recipe.setup()
    try:
        recipe.evaluate()
    finally:
        recipe.cleanup()
    said = {
        name: [m.text for e in played for m in e.trajectory.messages]
        for name, played in recipe.episodes.items()
    }
    assert list(said) == ["eager", "int8", "pte_fp32", "pte_8da4w"]
    assert said["eager"] == said["pte_fp32"]
    assert set(recipe.results["policies"]) == set(said)


def test_what_this_cpu_cannot_run_is_marked(recipe_class, cfg, monkeypatch, capsys):
    cfg.exports = {"float8": {"kind": "hf", "scheme": "float8_dynamic"}}
    module = recipe_class.__init__.__globals__

    def fail(*args, **kwargs):
        if args[2] is not None:
            raise NotImplementedError("no such product on this CPU")
        return {"runtime": "eager", "bytes": 1}

    monkeypatch.setitem(module, "eager_row", fail)
    row = export(recipe_class, cfg)["exports"]["float8"]
    assert row["not_run"] == "no such product on this CPU"
    assert load_quantized(Path(cfg.output_dir) / "float8")
    assert "float8: written and reloaded, not run: no such product" in capsys.readouterr().out


def test_gguf_is_written_and_where_it_cannot_run_marked(recipe_class, cfg):
    """llama-cpp-python is no dependency; tests/export/test_gguf_student.py runs it."""
    cfg.exports = {"gguf": {"kind": "gguf", "dtype": "fp32"}}
    row = export(recipe_class, cfg)["exports"]["gguf"]
    manifest = read_manifest(Path(cfg.output_dir) / "gguf")
    assert row["bytes"] == (Path(cfg.output_dir) / "gguf" / "model.gguf").stat().st_size
    assert manifest.kind == "gguf"
    assert row.get("error", 0) < 1e-2
    assert ("not_run" in row) is (importlib.util.find_spec("llama_cpp") is None)


@pytest.mark.parametrize(("dtype", "kept"), [("fp16", False), ("q8_0", True)])
def test_a_gguf_that_computes_something_else_is_not_kept(
    recipe_class, cfg, monkeypatch, dtype, kept
):
    """q8_0 rounds, and nothing says what its logits ought to be."""
    far = {"runtime": "gguf", "bytes": 1, "error": 0.5}
    module = recipe_class.__init__.__globals__
    monkeypatch.setitem(module, "load_exported", lambda folder: SimpleNamespace(close=lambda: None))
    monkeypatch.setitem(module, "exported_row", lambda *_: far)
    monkeypatch.setitem(module, "comparison_table", lambda rows: "")
    cfg.exports = {"gguf": {"kind": "gguf", "dtype": dtype}}
    with nullcontext() if kept else pytest.raises(ValueError, match=r"5.00e-01, .* is not kept"):
        export(recipe_class, cfg)
    assert (Path(cfg.output_dir) / "gguf").exists() is kept


@needs_executorch
def test_a_silently_wrong_scheme_is_refused(recipe_class, cfg):
    cfg.exports = {"x": {"kind": "executorch", "scheme": "int4"}}
    with pytest.raises(ValueError, match="wrong numbers and no error"):
        export(recipe_class, cfg)


@needs_executorch
def test_a_program_that_computes_something_else_is_not_kept(recipe_class, cfg, monkeypatch):
    cfg.exports = {"fp32": {"kind": "executorch"}}
    cfg.compare.max_error = 1e-12
    with pytest.raises(ValueError, match=r"gives other logits than the eager model .* is not kept"):
        export(recipe_class, cfg)
    assert not list(Path(cfg.output_dir).glob("*fp32*"))


def test_a_quantised_student_needs_its_reference(recipe_class, cfg, tmp_path):
    student = Path(cfg.run) / "student"
    cfg.student = str(quantize_folder(student, tmp_path / "quantized", Scheme("8da4w", 32)))
    with pytest.raises(ConfigError, match="is quantised: name the student that it was made of"):
        recipe_class(cfg).setup()
    cfg.reference = str(student)
    cfg.exports = {"copy": {"kind": "hf"}}
    row = export(recipe_class, cfg)["exports"]["copy"]
    assert 1e-3 < row["error"] < 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"exports": {"x": {"kind": "onnx"}}},
            r"exports.x.kind is one of hf, executorch, gguf; got 'onnx'",
        ),
        ({"exports": {"x": {"kind": "hf", "head": "8da8w"}}}, "nobody reads .* of exports.x"),
        ({"exports": {}}, "exports names at least one export"),
        ({"exports": {"x": {"kind": "hf", "scheme": "int3"}}}, r"exports.x.scheme is null or"),
        (
            {"exports": {"../x": {"kind": "hf"}}},
            "becomes a folder in output_dir; got '../x': take one",
        ),
        ({"exports": {".x": {"kind": "hf"}}}, "becomes a folder in output_dir; got '.x': take one"),
        ({"max_seq_len": 1025}, "max_seq_len is 1 to 1024, what the student reads; got 1025"),
        ({"run": None}, "give run .* or student"),
        ({"run": "nowhere"}, r"run names the folder of a training run; nowhere.config.yaml is not"),
        ({"max_seq_len": 8, "compare": {"new_tokens": 9}}, "lower compare.new_tokens"),
    ],
)
def test_mistakes_are_named(recipe_class, cfg, change, message):
    cfg.merge_with({k: v for k, v in change.items() if k != "exports"})
    if "exports" in change:
        cfg.exports = change["exports"]
    with pytest.raises(ValueError, match=message):
        export(recipe_class, cfg)


def test_without_executorch_the_command_is_named(recipe_class, cfg, monkeypatch):
    module = recipe_class.__init__.__globals__
    monkeypatch.setitem(module, "executorch_problems", lambda: ["executorch is not installed"])
    with pytest.raises(ConfigError, match="Set it up with `pip install --no-deps executorch=="):
        recipe_class(cfg).setup()


def test_results_are_not_overwritten_unasked(recipe_class, cfg):
    Path(cfg.output_dir).mkdir()
    (Path(cfg.output_dir) / "export.json").write_text("{}")
    cfg.overwrite = False
    with pytest.raises(ConfigError, match=r"export.json exists and would be lost"):
        recipe_class(cfg).setup()


def test_an_export_never_takes_the_place_of_what_it_was_made_of(recipe_class, cfg):
    cfg.output_dir, cfg.overwrite = cfg.run, True
    cfg.exports = {"student": {"kind": "hf"}}
    with pytest.raises(ConfigError, match=r"would replace .*student, which this run reads"):
        export(recipe_class, cfg)
    assert (Path(cfg.run) / "student" / "model.safetensors").is_file()


def test_a_folder_of_something_else_is_not_replaced(recipe_class, cfg):
    other = Path(cfg.output_dir) / "hf" / "notes.txt"
    other.parent.mkdir(parents=True)
    other.write_text("mine")
    cfg.overwrite, cfg.exports = False, {"hf": {"kind": "hf"}}
    with pytest.raises(ConfigError, match=r"hf exists and would be lost"):
        export(recipe_class, cfg)
    cfg.overwrite = True
    with pytest.raises(ValueError, match=r"holds things that are no part of a checkpoint"):
        export(recipe_class, cfg)
    assert other.read_text() == "mine"


def test_transcripts_that_name_no_format_are_compared_on(recipe_class, cfg, tmp_path):
    record = {
        "messages": [
            {"role": "user", "content": "Your task is to: put a cup in the microwave."},
            {"role": "assistant", "content": "Thought: A cup first.\nAction: go to cabinet 1"},
            {"role": "user", "content": "On the cabinet 1, you see a cup 1."},
        ]
    }
    cfg.compare.source = str(tmp_path / "mine.jsonl")
    Path(cfg.compare.source).write_text(json.dumps(record) + "\n")
    cfg.exports = {"hf": {"kind": "hf"}}
    assert export(recipe_class, cfg)["exports"]["hf"]["error"] < 1e-6


def test_the_command_takes_the_style_from_the_card(cfg, tmp_path):
    student = Path(cfg.run) / "student"
    front = {"sad": {"transform": {"style": "plain", "add_bos": False, "max_seq_len": 99}}}
    (student / "README.md").write_text(f"---\n{json.dumps(front)}\n---\n")
    command = ["export", str(student), "--out", cfg.output_dir, "--hf", "plain", "--rows", "1"]
    assert cli.main(command) == 0
    made = json.loads((Path(cfg.output_dir) / "export.json").read_text())["config"]
    assert made["transform"] == {"style": "plain", "add_bos": False}


def test_the_command_exports_a_quantised_student_as_it_is(cfg, tmp_path, capsys):
    student = Path(cfg.run) / "student"
    quantized = str(quantize_folder(student, tmp_path / "quantized", Scheme("8da4w", 32)))
    command = ["export", quantized, "--out", cfg.output_dir, "--reference", str(student)]
    assert cli.main([*command, "--pte", "fp32"]) == 2
    assert "is quantised by 8da4w and is exported as it is" in capsys.readouterr().err
    assert cli.main([*command, "--hf", "plain", "--rows", "1"]) == 0
    card = (Path(cfg.output_dir) / "hf" / "README.md").read_text()
    assert "load_quantized(" in card
    assert "AutoModelForCausalLM" not in card


def test_the_command(cfg, capsys):
    """The same through `sad export`, of a run and of a student alone."""
    out = Path(cfg.output_dir)
    assert cli.main(["export", cfg.run, "--out", str(out), "--hf", "plain", "--rows", "1"]) == 0
    assert (out / "hf" / "model.safetensors").is_file()
    assert "eager fp32" in capsys.readouterr().out
    student = ["export", f"{cfg.run}/student", "--style", "plain", "--out", str(out)]
    assert cli.main([*student, "--hf", "8da4w", "--rows", "1"]) == 2
    assert "exists and would be lost" in capsys.readouterr().err
    assert cli.main([*student, "--hf", "8da4w", "--rows", "1", "--overwrite"]) == 0
    assert (out / "8da4w_eager" / "config.json").is_file()


def test_the_qat_config_is_the_students_with_rounding():
    """Two configs that must not drift apart: one student, trained with and without rounding."""
    plain, rounded = (
        OmegaConf.load(ROOT / "configs" / "household" / f"{name}.yaml")
        for name in ("distil_student", "distil_student_qat")
    )
    different = {key for key in {*plain, *rounded} if plain.get(key) != rounded.get(key)}
    assert different == {"output_dir", "qat", "qat_group_size"}
    assert (rounded.qat, rounded.qat_group_size) == ("8da4w", 32)
