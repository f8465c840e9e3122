"""Folders in Hugging Face format: read with care, written so that a failure loses nothing."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sad_components.models import checkpoint, from_pretrained, save_student
from sad_components.models.checkpoint import load_hf_folder, save_hf_folder


def _contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def _shard(folder):
    """Splits model.safetensors in two and writes the index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"model-{i:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard)
        weight_map.update(dict.fromkeys(part, shard))
    _write_index(folder, weight_map)
    return weight_map


def _write_index(folder, weight_map):
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def test_shards_read_as_one_file(tiny_folder):
    whole = load_hf_folder(tiny_folder).state_dict
    _shard(tiny_folder)
    parts = load_hf_folder(tiny_folder).state_dict
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_dtype_is_cast(tiny_folder):
    state = load_hf_folder(tiny_folder, dtype=torch.bfloat16).state_dict
    assert {t.dtype for t in state.values()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["../evil.safetensors", "/evil.safetensors", "a\\b.safetensors"])
def test_index_cannot_leave_the_folder(tiny_folder, name):
    weight_map = _shard(tiny_folder)
    save_file({"model.norm.weight": torch.ones(48)}, tiny_folder.parent / "evil.safetensors")
    _write_index(tiny_folder, {**weight_map, "model.norm.weight": name})
    with pytest.raises(ValueError, match="its own folder"):
        load_hf_folder(tiny_folder)


def test_index_that_disagrees_with_its_shards(tiny_folder):
    weight_map = _shard(tiny_folder)
    shards = sorted(set(weight_map.values()))
    moved = {**weight_map, "model.norm.weight": shards[0]}
    moved["model.embed_tokens.weight"] = shards[1]
    _write_index(tiny_folder, moved)
    with pytest.raises(ValueError, match="disagree"):
        load_hf_folder(tiny_folder)
    _write_index(tiny_folder, dict.fromkeys(weight_map, "absent.safetensors"))
    with pytest.raises(ValueError, match="absent"):
        load_hf_folder(tiny_folder)
    _write_index(tiny_folder, {"model.norm.weight": "weights.bin"})
    with pytest.raises(ValueError, match=r"\.safetensors files"):
        load_hf_folder(tiny_folder)


def test_pickles_are_refused(tiny_folder):
    (tiny_folder / "model.safetensors").rename(tiny_folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled"):
        load_hf_folder(tiny_folder)


def test_missing_and_broken_files_are_named(tiny_folder, tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        load_hf_folder(tmp_path / "nowhere")
    (tiny_folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_hf_folder(tiny_folder)
    (tiny_folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds neither"):
        load_hf_folder(tiny_folder)
    (tiny_folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="JSON object"):
        load_hf_folder(tiny_folder)
    (tiny_folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json must be a readable JSON"):
        load_hf_folder(tiny_folder)


def test_weights_that_do_not_fit_the_config(tiny_folder):
    config = json.loads((tiny_folder / "config.json").read_text())
    config["num_hidden_layers"] = 5
    (tiny_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"(?s)do not fit.*layers\.4"):
        from_pretrained(tiny_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"model_type": "mamba"}, "'mamba'"), ({"quantization_config": {"bits": 4}}, "quantised")],
)
def test_unknown_families_are_refused(tiny_folder, change, message):
    config = json.loads((tiny_folder / "config.json").read_text())
    (tiny_folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=message):
        from_pretrained(tiny_folder)


def test_saved_folder_loads_in_transformers(tiny_folder, tiny_llama, tokens, tmp_path):
    model = from_pretrained(tiny_folder, dtype="fp32")
    out = save_student(model, tmp_path / "deep" / "student", tokenizer_dir=tiny_folder)
    loaded = AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.no_grad():
        logits = loaded(tokens).logits
        torch.testing.assert_close(logits, model(tokens), atol=1e-4, rtol=0)
        torch.testing.assert_close(logits, tiny_llama(tokens).logits, atol=0, rtol=0)
    assert loaded.dtype == torch.float32
    ids = [getattr(loaded.config, f"{kind}_token_id") for kind in ("bos", "eos", "pad")]
    assert ids == [1, 2, 0]
    assert AutoTokenizer.from_pretrained(out)("w5 w9").input_ids == [5, 9]


def test_bf16_stays_bf16_and_rotary_tables_fp32(tiny_folder, tmp_path):
    model = from_pretrained(tiny_folder, dtype="bf16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.layers[0].attn.pos_embeddings.cache.dtype == torch.float32
    out = save_student(model, tmp_path / "student")
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


def test_full_state_dict_of_a_sharded_model(tiny_folder, tmp_path):
    model = from_pretrained(tiny_folder)
    doubled = {name: 2 * tensor for name, tensor in model.state_dict().items()}
    out = save_student(model, tmp_path / "student", state_dict=doubled)
    norm = load_hf_folder(out).state_dict["model.norm.weight"]
    assert torch.equal(norm, 2 * model.norm.scale)


def test_older_checkpoint_is_replaced_and_nothing_else_stays(tiny_folder, tmp_path):
    model = from_pretrained(tiny_folder)
    out = save_student(model, tmp_path / "student", tokenizer_dir=tiny_folder)
    with torch.no_grad():
        model.norm.scale.fill_(3.0)
    save_student(model, out)
    assert torch.equal(load_hf_folder(out).state_dict["model.norm.weight"], torch.full((48,), 3.0))
    assert {f.name for f in out.iterdir()} == {"config.json", "model.safetensors"}
    assert sorted(f.name for f in tmp_path.iterdir()) == ["student", "tiny"]


@pytest.mark.parametrize("where", ["save_file", "_fsync"])
def test_failed_write_keeps_the_previous_checkpoint(tiny_folder, tmp_path, monkeypatch, where):
    model = from_pretrained(tiny_folder)
    out = save_student(model, tmp_path / "student", tokenizer_dir=tiny_folder)
    before = _contents(out)

    def full_disk(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, where, full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_student(model, out, tokenizer_dir=tiny_folder)
    assert _contents(out) == before
    assert sorted(f.name for f in tmp_path.iterdir()) == ["student", "tiny"]


def test_failed_rename_puts_the_previous_checkpoint_back(tiny_folder, tmp_path, monkeypatch):
    model = from_pretrained(tiny_folder)
    out = save_student(model, tmp_path / "student")
    before = _contents(out)
    rename = type(out).rename

    def refuse_fresh(self, target):
        if self.name.endswith(".writing"):
            raise OSError(errno.EIO, "input/output error")
        return rename(self, target)

    monkeypatch.setattr(type(out), "rename", refuse_fresh)
    with pytest.raises(OSError, match="input/output"):
        save_student(model, out)
    assert _contents(out) == before


_WRITE_WITH_LIMIT = """
import resource, signal, sys, torch
from sad_components.models.checkpoint import save_hf_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_hf_folder(sys.argv[1], {"w": torch.zeros(1_000_000)}, {"model_type": "llama"})
except OSError as error:
    print("refused:", error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX file size limits")
def test_real_refusal_of_the_file_system_keeps_the_previous_checkpoint(tmp_path):
    """The operating system itself stops the write in the middle of the weights."""
    out = save_hf_folder(tmp_path / "student", {"w": torch.ones(3)}, {"model_type": "llama"})
    before = _contents(out)
    command = [sys.executable, "-c", _WRITE_WITH_LIMIT, str(out)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "refused:" in result.stdout, result.stderr
    assert _contents(out) == before
    assert [f.name for f in tmp_path.iterdir()] == ["student"]


def test_folder_with_other_things_is_not_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        save_hf_folder(tmp_path, {"w": torch.ones(3)}, {})
    with pytest.raises(ValueError, match="is a file"):
        save_hf_folder(tmp_path / "notes.txt", {"w": torch.ones(3)}, {})
    assert _contents(tmp_path) == {"notes.txt": b"mine"}


def test_tokenizer_folder_without_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer"):
        save_hf_folder(tmp_path / "out", {"w": torch.ones(3)}, {}, tokenizer_dir=tmp_path)
    assert not (tmp_path / "out").exists()
