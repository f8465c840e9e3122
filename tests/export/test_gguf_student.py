"""llama.cpp's runner, against a stand-in for llama-cpp-python that runs the same student.

The real library compiles for long: tests use it only where it is installed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from lm_students import make_student

from sad_components.data import HFTokenizer, SpanTokenizer
from sad_components.evaluation.decoding import CachedDecoder, Prefix
from sad_components.evaluation.generation import Generator, Prompt
from sad_components.export.gguf import write_gguf
from sad_components.export.gguf_student import GGUFStudent
from sad_components.export.manifest import Manifest, write_manifest
from sad_components.export.student import load_exported
from sad_components.export.writer import copy_tokenizer
from sad_components.models import from_pretrained
from sad_components.models.gguf_import import gguf_to_hf_folder

IDS = [1, 30, 40, 50, 60, 70, 80]


class FakeLlama:
    """What ``GGUFStudent`` uses of ``llama_cpp.Llama``, on torchtune; counts what it reads."""

    read = 0

    def __init__(self, model_path: str, n_ctx: int, **_) -> None:
        if Path(model_path).stat().st_size < 1000:
            raise ValueError("Failed to load model from file")
        folder = Path(model_path).parent / ".again"
        gguf_to_hf_folder(model_path, folder, torch.float32)
        self._model = from_pretrained(folder, dtype="fp32").eval()
        self.n_tokens = 0
        self.input_ids = np.zeros(n_ctx, dtype=np.intc)
        self.scores = np.full((n_ctx, self.n_vocab()), np.nan, dtype=np.single)

    def n_vocab(self) -> int:
        return 512

    @torch.no_grad()
    def eval(self, tokens: list[int]) -> None:
        start, self.n_tokens = self.n_tokens, self.n_tokens + len(tokens)
        type(self).read += len(tokens)
        self.input_ids[start : self.n_tokens] = tokens
        whole = torch.tensor(self.input_ids[: self.n_tokens].tolist())[None]
        self.scores[start : self.n_tokens] = self._model(whole)[0, start:].numpy()

    def close(self) -> None:
        self.n_tokens = 0


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    return make_student("smollm2", tmp_path_factory.mktemp("student"))


@pytest.fixture
def fake(monkeypatch) -> type[FakeLlama]:
    module = ModuleType("llama_cpp")
    module.Llama = FakeLlama
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    FakeLlama.read = 0
    return FakeLlama


def export(student: Path, folder: Path, dtype: str = "fp32") -> Path:
    """An exported folder of kind ``gguf``."""
    folder.mkdir()
    write_gguf(student, folder / "model.gguf", dtype)
    tokenizer = HFTokenizer(str(student))
    copy_tokenizer(tokenizer, folder)
    write_manifest(
        folder,
        Manifest(
            kind="gguf",
            variant=dtype,
            model_file="model.gguf",
            max_seq_len=256,
            prefill_tokens=256,
            vocab_size=512,
            architecture={},
            quantization={},
            tokenizer={"fingerprint": tokenizer.fingerprint, "vocab_size": 512},
            transform={"style": "plain"},
            format="react",
            markers={},
            chat_template=tokenizer.chat_template,
            stop_tokens=[3],
            source={},
            versions={},
        ),
    )
    return folder


def run_like_the_student(runner: GGUFStudent, student: Path, tolerance: float) -> None:
    """Logits and greedy text are the torchtune decoder's."""
    model = from_pretrained(student, dtype="fp32").eval()
    with torch.no_grad():
        expected = model(torch.tensor([IDS]))[0]
    found = runner.sequence_logits(IDS, 2)
    assert (found - expected[2:]).norm() / expected.norm() < tolerance
    (last,) = runner.logits([Prefix(5, IDS)])
    assert (last - expected[-1]).norm() / expected.norm() < tolerance
    texts = []
    for source in (runner, CachedDecoder(model)):
        tokenizer = HFTokenizer(str(student))
        prompt = Prompt(0, list(IDS), None, lambda text: None, frozenset())
        (written,) = Generator(source, tokenizer, 12).generate([prompt])
        texts.append(written.token_ids)
    assert texts[0] == texts[1]


def test_logits_and_text_are_the_students(student, fake, tmp_path):
    runner = load_exported(export(student, tmp_path / "out"))
    assert isinstance(runner, GGUFStudent)
    assert isinstance(runner.transform, SpanTokenizer)
    assert runner.transform.style == "plain"
    run_like_the_student(runner, student, 1e-5)


def test_what_was_read_is_not_read_again(student, fake, tmp_path):
    runner = GGUFStudent(export(student, tmp_path / "out"))
    for length in (4, 5, 6):
        runner.logits([Prefix(0, IDS[:length])])
    assert fake.read == 4 + 1 + 1
    runner.logits([Prefix(0, [*IDS[:3], 99])])  # another end: only that is read
    assert fake.read == 7
    first = runner.logits([Prefix(0, IDS)])
    other = runner.logits([Prefix(1, [9, 8, 7])])  # takes the only context
    torch.testing.assert_close(runner.logits([Prefix(0, IDS)]), first)
    assert not torch.allclose(first, other)


def test_sessions_have_contexts_of_their_own(student, fake, tmp_path):
    runner = GGUFStudent(export(student, tmp_path / "out"), sessions=2)
    runner.logits([Prefix(0, IDS[:4]), Prefix(1, IDS[:5])])
    before = fake.read
    runner.logits([Prefix(0, IDS[:5]), Prefix(1, IDS[:6])])
    assert fake.read == before + 2
    runner.close()


@pytest.mark.parametrize("tokens", [[], [1] * 257])
def test_a_sequence_that_does_not_fit(student, fake, tmp_path, tokens):
    with pytest.raises(ValueError, match="1 to 256 tokens"):
        GGUFStudent(export(student, tmp_path / "out")).logits([Prefix(0, tokens)])


def test_a_file_that_llama_cpp_does_not_read(student, fake, tmp_path):
    folder = export(student, tmp_path / "out")
    (folder / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"model.gguf has 4 bytes, but manifest.json says"):
        GGUFStudent(folder)
    with pytest.raises(ValueError, match=r"model\.gguf"):
        GGUFStudent(folder, verify=False)


def test_without_the_library(student, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ImportError, match="pip install llama-cpp-python"):
        load_exported(export(student, tmp_path / "out"))


@pytest.mark.parametrize("dtype", ["fp32", "q8_0"])
def test_llama_cpp_itself(student, tmp_path, dtype):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    runner = load_exported(export(student, tmp_path / "out", dtype))
    run_like_the_student(runner, student, 1e-3 if dtype == "fp32" else 5e-2)
