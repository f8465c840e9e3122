"""GGUF files: what other readers make of them, against the student itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.constants import TokenType
from hf_families import write_reference
from lm_students import make_student, with_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sad_components.export.gguf import write_gguf
from sad_components.models import from_pretrained
from sad_components.models.gguf_import import gguf_to_hf_folder

TOKENS = torch.arange(3, 63).view(2, 30) % 500
#: transformers does not read the scaled rotary positions of Llama 3.1 and later out of a GGUF.
FAMILIES = ["smollm2", "llama2", "mistral", "qwen2.5-7b", "qwen2.5-0.5b"]
#: Of these it does not read the head's width, or the context and the MLP's width.
OWN_CONFIG = ["qwen3-8b", "qwen3-0.6b", "gpt2", "gpt2-untied-narrow"]


def metadata(path: Path) -> dict:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    return from_pretrained(folder, dtype="fp32").eval()(TOKENS)


@torch.no_grad()
def transformers_logits(path: Path, config: Path | None = None) -> torch.Tensor:
    """Of the file, with its own settings, or with those of a folder."""
    given = {} if config is None else {"config": AutoConfig.from_pretrained(config)}
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, **given
    )
    return model.eval()(TOKENS).logits


@pytest.fixture
def wide(tmp_path) -> Path:
    """A llama whose rows are multiples of Q8_0's blocks."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    folder = write_reference("smollm2", tmp_path / "wide", vocab_size=512, **sizes)
    return with_tokenizer(folder)


@pytest.mark.parametrize("family", FAMILIES + OWN_CONFIG)
def test_transformers_reads_the_same_model(family, tmp_path):
    folder = make_student(family, tmp_path / "student")
    report = write_gguf(folder, tmp_path / "out" / "model.gguf", "fp32")
    theirs = transformers_logits(report.path, folder if family in OWN_CONFIG else None)
    torch.testing.assert_close(theirs, logits(folder), rtol=1e-4, atol=1e-4)
    assert report.unquantized == []
    assert report.bytes == report.path.stat().st_size


def test_our_own_reader_gives_the_folder_back(tmp_path):
    folder = make_student("smollm2", tmp_path / "student")
    path = write_gguf(folder, tmp_path / "model.gguf", "fp32").path
    again = gguf_to_hf_folder(path, tmp_path / "again", torch.float32)
    torch.testing.assert_close(logits(again), logits(folder), rtol=0, atol=0)
    ours, theirs = (json.loads((f / "tokenizer.json").read_text()) for f in (again, folder))
    assert ours["model"]["vocab"] == theirs["model"]["vocab"]
    assert ours["model"]["merges"] == theirs["model"]["merges"]
    configs = [json.loads((f / "tokenizer_config.json").read_text()) for f in (again, folder)]
    for key in ("bos_token", "eos_token", "pad_token", "chat_template"):
        assert configs[0][key] == configs[1][key]


def test_transformers_reads_the_same_tokenizer(tmp_path):
    folder = make_student("qwen3-0.6b", tmp_path / "student")
    path = write_gguf(folder, tmp_path / "out" / "model.gguf").path
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = AutoTokenizer.from_pretrained(folder)
    for text in ("Thought: I need 12 cups.\nAction: go to drawer 2", "<|im_start|>user\nhi"):
        assert theirs.decode(theirs(text).input_ids) == ours.decode(ours(text).input_ids)


@pytest.mark.parametrize(
    ("dtype", "error", "smaller"), [("fp16", 4e-3, 1.9), ("bf16", 3e-2, 1.9), ("q8_0", 8e-2, 3.4)]
)
def test_smaller_dtypes(wide, tmp_path, dtype, error, smaller):
    whole = write_gguf(wide, tmp_path / "a" / "model.gguf", "fp32")
    small = write_gguf(wide, tmp_path / "b" / "model.gguf", dtype)
    difference = transformers_logits(small.path) - logits(wide)
    assert 0 < difference.norm() / logits(wide).norm() < error
    sizes = [sum(t.n_bytes for t in GGUFReader(r.path).tensors) for r in (whole, small)]
    assert sizes[0] / sizes[1] > smaller


def test_rows_that_q8_0_cannot_hold_are_fp16_and_named(tmp_path):
    folder = make_student("smollm2", tmp_path / "student")  # 48 wide
    report = write_gguf(folder, tmp_path / "model.gguf", "q8_0")
    assert "blk.0.attn_q.weight" in report.unquantized
    types = {t.name: t.tensor_type.name for t in GGUFReader(report.path).tensors}
    assert types["blk.0.attn_q.weight"] == "F16"
    assert types["blk.0.attn_norm.weight"] == "F32"


def test_settings(tmp_path):
    folder = make_student("smollm2", tmp_path / "student")
    found = metadata(write_gguf(folder, tmp_path / "m.gguf", name="A", licence="mit").path)
    expected = {
        "general.architecture": "llama",
        "general.name": "A",
        "general.license": "mit",
        "llama.block_count": 3,
        "llama.context_length": 256,
        "llama.attention.head_count": 6,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 8,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {key: found[key] for key in expected} == expected
    assert len(found["tokenizer.ggml.tokens"]) == 512
    types = found["tokenizer.ggml.token_type"]
    assert types[:5] == [TokenType.CONTROL] * 4 + [TokenType.NORMAL]


def test_llama3_rotary_factors_are_those_of_torchtunes_rotation(tmp_path):
    """The file holds by how much each frequency is slowed; torchtune's tables hold the outcome."""
    folder = make_student("llama3.2", tmp_path / "student")
    tensors = {
        t.name: t.data for t in GGUFReader(write_gguf(folder, tmp_path / "m.gguf").path).tensors
    }
    factors = tensors["rope_freqs.weight"]
    width = 2 * len(factors)
    plain = 10_000.0 ** -(np.arange(0, width, 2) / width)
    rope = from_pretrained(folder).layers[0].attn.pos_embeddings
    np.testing.assert_allclose(plain / factors, rope.theta.numpy(), rtol=1e-6)
    assert (factors.min(), factors.max()) == (1, 8)


@pytest.mark.parametrize(
    ("digits", "normalizer", "name"),
    [(r"\p{N}{1,3}", None, "llama-bpe"), (r"\p{N}", {"type": "NFC"}, "qwen2")],
)
def test_rules_of_other_tokenizers(tmp_path, digits, normalizer, name):
    folder = make_student("smollm2", tmp_path / "student")
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+"
        r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    steps = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]
    change_tokenizer(folder, steps, normalizer)
    assert metadata(write_gguf(folder, tmp_path / "m.gguf").path)["tokenizer.ggml.pre"] == name


def test_a_rule_that_llama_cpp_has_not(tmp_path):
    folder = make_student("smollm2", tmp_path / "student")
    change_tokenizer(folder, [{"type": "Whitespace"}], None)
    with pytest.raises(ValueError, match="splits texts by rules of its own"):
        write_gguf(folder, tmp_path / "m.gguf")


def change_tokenizer(folder: Path, steps: list[dict], normalizer: dict | None) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    content["normalizer"] = normalizer
    file.write_text(json.dumps(content))


class TestRefusals:
    def test_a_family_that_llama_cpp_has_not(self, tmp_path):
        folder = make_student("opt", tmp_path / "student")
        with pytest.raises(ValueError, match="this student is a 'opt': export it to ExecuTorch"):
            write_gguf(folder, tmp_path / "m.gguf")

    def test_a_dtype(self, tmp_path):
        with pytest.raises(ValueError, match="dtype is one of fp32, fp16, bf16, q8_0; got 'q4'"):
            write_gguf(tmp_path, tmp_path / "m.gguf", "q4")

    def test_a_tokenizer_of_another_model(self, tmp_path):
        folder = with_tokenizer(write_reference("smollm2", tmp_path / "student"))  # 97 tokens
        with pytest.raises(ValueError, match="512 tokens, but the model's embedding 97 rows"):
            write_gguf(folder, tmp_path / "m.gguf")

    def test_a_failure_leaves_the_older_file(self, wide, tmp_path, monkeypatch):
        path = write_gguf(wide, tmp_path / "m.gguf").path
        before = path.read_bytes()

        def full(*_):
            raise OSError("no space left on device")

        monkeypatch.setattr("sad_components.export.gguf.os.fsync", full)
        with pytest.raises(OSError, match="no space"):
            write_gguf(wide, path, "fp32")
        assert path.read_bytes() == before
        assert [f.name for f in tmp_path.iterdir() if "part" in f.name] == []
