"""``sad prune`` on a tiny teacher and the shipped household trajectories."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hf_families import reference
from loading import load_module
from omegaconf import OmegaConf

from sad_components.cli import main
from sad_components.data.shipped import resolve_folder
from sad_components.models import from_pretrained

VOCAB, CONTEXT = 512, 256
TINY = Path(__file__).parents[2] / "configs" / "tiny" / "structured_kd.yaml"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers") / "teacher"
    reference("smollm2", vocab_size=VOCAB, max_position_embeddings=CONTEXT).save_pretrained(folder)
    for file in resolve_folder("shipped:household/tokenizer").iterdir():
        shutil.copyfile(file, folder / file.name)
    return folder


@pytest.fixture
def data(tmp_path):
    """A few short trajectories: reading all the shipped ones takes its time."""
    source = resolve_folder("shipped:household/tokenizer").parent / "trajectories" / "heldout.jsonl"
    lines = sorted(source.read_text(encoding="utf-8").splitlines(), key=len)[:6]
    file = tmp_path / "few.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def sad_prune(teacher, out, *options):
    return main(["prune", str(teacher), "--out", str(out), *map(str, options)])


def test_layers_heads_neurons_and_channels(teacher, data, tmp_path, capsys):
    options = ["--layers", 2, "--heads", 4, "--ffn", 64, "--width", 40, "--data", data]
    small = ["--rows", 3, "--max-seq-len", CONTEXT, "--style", "plain"]
    assert sad_prune(teacher, tmp_path / "student", *options, *small) == 0
    said = capsys.readouterr().out
    student = from_pretrained(tmp_path / "student")
    attention = student.layers[0].attn
    assert (len(student.layers), attention.num_heads, attention.num_kv_heads) == (2, 4, 2)
    assert student.tok_embeddings.weight.shape == (VOCAB, 40)
    assert (tmp_path / "student" / "tokenizer.json").is_file()
    report = json.loads((tmp_path / "student" / "pruning.json").read_text(encoding="utf-8"))
    assert len(report["importance"]["rows"]) == 3
    assert (report["data"], report["seed"], report["style"]) == (str(data), 0, "plain")
    assert "times fewer parameters" in said
    assert "student ->" in said


def test_seed_chooses_the_rows(teacher, data, tmp_path):
    options = ["--ffn", 64, "--data", data, "--rows", 2, "--max-seq-len", CONTEXT]
    chosen = []
    for run, seed in enumerate((0, 0, 5)):
        assert sad_prune(teacher, tmp_path / f"s{run}", *options, "--seed", seed) == 0
        report = json.loads((tmp_path / f"s{run}" / "pruning.json").read_text(encoding="utf-8"))
        chosen.append(report["importance"]["rows"])
    assert chosen[0] == chosen[1] != chosen[2]


def test_places_need_no_data(teacher, tmp_path, capsys):
    options = ["--layers", 2, "--depth", "last", "--data", "nowhere.jsonl"]
    assert sad_prune(teacher, tmp_path / "student", *options) == 0
    assert "layers kept (last): 1-2" in capsys.readouterr().out
    whole, student = from_pretrained(teacher), from_pretrained(tmp_path / "student")
    assert torch.equal(student.layers[0].mlp.w1.weight, whole.layers[1].mlp.w1.weight)


def test_dry_run_writes_nothing(teacher, tmp_path, capsys):
    out = tmp_path / "student"
    assert sad_prune(teacher, out, "--layers", 1, "--depth", "even", "--dry-run") == 0
    assert "nothing written" in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say what to prune: --layers"),
        (["--layers", 9, "--depth", "even"], "a student keeps 1 to 3, not 9"),
        (["--heads", 5, "--data", "nowhere.jsonl"], "ask for heads 2 or 4 or 6"),
        (["--layers", 2, "--data", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_mistakes_are_told_on_one_line(teacher, data, tmp_path, capsys, options, message):
    given = options if "--data" in options else [*options, "--data", data]
    small = ["--rows", 1, "--max-seq-len", CONTEXT]
    assert sad_prune(teacher, tmp_path / "student", *given, *small) == 2
    error = capsys.readouterr().err
    assert error.startswith("sad: error: ")
    assert message in error


def test_an_existing_folder_stays(teacher, tmp_path, capsys):
    (tmp_path / "student").mkdir()
    assert sad_prune(teacher, tmp_path / "student", "--layers", 2, "--depth", "even") == 2
    assert "exists: choose another folder" in capsys.readouterr().err


def test_a_tokenizer_too_large(teacher, data, tmp_path, capsys):
    small = tmp_path / "small"
    reference("smollm2", vocab_size=100).save_pretrained(small)
    options = ["--ffn", 40, "--data", data, "--tokenizer", teacher]
    assert sad_prune(small, tmp_path / "student", *options) == 2
    assert "vocabulary has 100 ids, its tokenizer 512" in capsys.readouterr().err


def test_a_recipe_takes_the_students_path(teacher, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--data", data, "--rows", 1, "--max-seq-len", CONTEXT]
    assert sad_prune(teacher, "student", "--layers", 2, "--width", 36, *small) == 0
    from_folder = "sad_components.models.from_pretrained"
    cfg = OmegaConf.load(TINY)
    cfg.teacher = {"_component_": from_folder, "path": str(teacher)}
    cfg.student = {"_component_": from_folder, "path": "student"}
    cfg.transform.max_seq_len = CONTEXT
    cfg.dataset = cfg.heldout = {"source": str(data), "limit": 2}
    cfg.max_steps = 1
    recipe = load_module("recipes/structured_kd.py").StructuredKDRecipe(cfg)
    recipe.setup(cfg)
    recipe.train()
    recipe.cleanup()
    assert recipe.heldout["before"]["kl_reason"] > 0
    trained = from_pretrained(Path(cfg.output_dir) / "student")
    assert trained.tok_embeddings.weight.shape == (VOCAB, 36)
