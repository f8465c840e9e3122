"""The manifest: everything in it comes back, and whatever is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from exports import facts, write_student

from sad_components.export import is_export, read_manifest, write_manifest
from sad_components.export.manifest import file_hash
from sad_components.export.writer import copy_tokenizer


@pytest.fixture
def folder(tmp_path) -> Path:
    """An export without a program: its model's file holds other bytes."""
    known = facts(write_student(tmp_path / "student"))
    out = tmp_path / "export"
    out.mkdir()
    (out / "model.pte").write_bytes(b"program")
    copy_tokenizer(known.tokenizer, out)
    described = known.manifest(
        kind="executorch",
        variant="fp32",
        model_file="model.pte",
        max_seq_len=96,
        prefill_tokens=16,
        vocab_size=512,
        quantization={},
    )
    write_manifest(out, described)
    return out


def change(folder: Path, **values) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_says_what_a_runner_must_know(folder):
    found = read_manifest(folder)
    assert found.markers == {
        "reason": "Thought:",
        "act": "Action:",
        "observation": "Observation:",
        "stop": "\n",
    }
    assert found.transform == {
        "style": "plain",
        "format": "auto",
        "on_rewrite": "error",
        "add_bos": True,
    }
    assert found.format == "react"
    assert found.architecture["model_type"] == "llama"
    assert set(found.source["sha256"]) == {"config.json", "model.safetensors"}
    assert found.versions["torch"].startswith("2.13")
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert set(found.files) == {"model.pte", *tokenizer}
    for name, known in found.files.items():
        assert known["sha256"] == file_hash(folder / name)
    assert is_export(folder)


@pytest.mark.parametrize("program", ["model.pte", "model.gguf"])
def test_an_export_is_known_by_its_program_where_the_manifest_cannot_be_read(tmp_path, program):
    (tmp_path / "manifest.json").write_text("{")
    assert not is_export(tmp_path)
    (tmp_path / program).write_bytes(b"program")
    assert is_export(tmp_path)


@pytest.mark.parametrize("name", ["model.pte", "tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_is_named(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(ValueError, match=rf"{name} is not the file that was exported.*SHA-256"):
        read_manifest(folder)
    assert read_manifest(folder, verify=False)


def test_a_file_that_was_cut_or_is_missing_is_named(folder):
    (folder / "model.pte").write_bytes(b"prog")
    with pytest.raises(ValueError, match=r"model.pte has 4 bytes, but manifest.json says 7"):
        read_manifest(folder, verify=False)
    (folder / "model.pte").unlink()
    with pytest.raises(ValueError, match=r"names model.pte, which is not in"):
        read_manifest(folder, verify=False)


@pytest.mark.parametrize("name", ["../student/config.json", "/etc/hosts", "a\\b", "..", ""])
def test_names_outside_the_folder_are_refused(folder, name):
    files = json.loads((folder / "manifest.json").read_text())["files"]
    change(folder, files={**files, name: {"sha256": "0", "bytes": 1}})
    with pytest.raises(ValueError, match="must name files of its own folder"):
        read_manifest(folder)


def test_links_out_of_the_folder_are_refused(folder, tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"program")
    (folder / "model.pte").unlink()
    (folder / "model.pte").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"model.pte is a link to a place outside"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "other"}, "its format is 'other'"),
        ({"format_version": 2}, "has format_version 2; this version reads 1"),
        ({"max_seq_len": "96"}, "max_seq_len must be a int; got '96'"),
        ({"vocab_size": 0}, "vocab_size must be at least 1; got 0"),
        ({"kind": "onnx"}, "kind is one of executorch, gguf; got 'onnx'"),
        ({"stop_tokens": [512]}, "stop_tokens are ids from 0 to 511"),
        ({"model_file": "other.pte"}, "files does not list model_file, 'other.pte'"),
        ({"transform": {"tokenizer": "x"}}, "transform has tokenizer; known: style"),
        ({"files": {"model.pte": 7}}, r"files\['model.pte'\] must hold sha256 and bytes"),
    ],
)
def test_impossible_values_are_named(folder, values, message):
    change(folder, **values)
    with pytest.raises(ValueError, match=message):
        read_manifest(folder)


def test_what_is_no_export(folder, tmp_path):
    with pytest.raises(ValueError, match=r"is a folder; .*nowhere is none"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no manifest.json: it is no exported student"):
        read_manifest(tmp_path / "student")
    assert not is_export(tmp_path / "student")
    (folder / "manifest.json").write_text('{"format": ')
    with pytest.raises(ValueError, match=r"manifest.json is no readable JSON"):
        read_manifest(folder)
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object, not a list"):
        read_manifest(folder)
    content = '{"format": "sad_export", "format_version": 1}'
    (folder / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match="lacks kind, variant, model_file"):
        read_manifest(folder)
