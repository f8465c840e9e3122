"""Exported folders: the model's file, the tokenizer, and a manifest that describes both."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sad_components.data.tokenizers import HFTokenizer
from sad_components.data.transform import SpanTokenizer
from sad_components.export.decoder import ExportDecoder
from sad_components.export.gguf import write_gguf
from sad_components.export.lowering import lower
from sad_components.export.manifest import (
    TRANSFORM_KEYS,
    Manifest,
    file_hash,
    write_manifest,
)
from sad_components.export.requirements import require_executorch
from sad_components.export.variants import Variant, exported_variant, prepare
from sad_components.formats import get_format
from sad_components.models.checkpoint import PROGRAM_FILES, TOKENIZER_FILES, load_hf_config
from sad_components.models.families import build_decoder
from sad_components.models.hidden import vocab_size_of
from sad_components.models.quantized import quantized_scheme

PTE_FILE, GGUF_FILE = PROGRAM_FILES
_TEMPLATE_FILE = "chat_template.jinja"
_PACKAGES = ("torchtune-sad", "torch", "torchtune", "torchao", "executorch", "transformers")


@dataclass(frozen=True)
class Facts:
    """What every export of a student has in common, whatever its runtime.

    Args:
        student: folder in Hugging Face format, or of a quantised student.
        transform: tokenizer and style in which it was trained.
        format: name of the transcript format.
        stop_tokens: ids that end a turn.
    """

    student: Path
    transform: SpanTokenizer
    format: str
    stop_tokens: tuple[int, ...]

    @property
    def tokenizer(self) -> HFTokenizer:
        """The student's tokenizer.

        Raises:
            ValueError: it is of a kind without ``tokenizer.json``.
        """
        tokenizer = self.transform.tokenizer
        if not isinstance(tokenizer, HFTokenizer):
            raise ValueError(
                "an exported student needs a tokenizer.json beside it; this one's tokenizer is a "
                f"{type(tokenizer).__name__}: give sad_components.data.HFTokenizer of the same "
                "model"
            )
        return tokenizer

    def manifest(
        self,
        *,
        kind: str,
        variant: str,
        model_file: str,
        max_seq_len: int,
        prefill_tokens: int,
        vocab_size: int,
        quantization: Mapping[str, Any],
        extra: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """The manifest of one export; :func:`write_manifest` adds the hashes of its files."""
        config = load_hf_config(self.student)
        dialect = get_format(self.format).dialect
        tokenizer = self.tokenizer
        return Manifest(
            kind=kind,
            variant=variant,
            model_file=model_file,
            max_seq_len=max_seq_len,
            prefill_tokens=prefill_tokens,
            vocab_size=vocab_size,
            architecture=config,
            quantization=dict(quantization),
            tokenizer={
                "fingerprint": tokenizer.fingerprint,
                "vocab_size": tokenizer.vocab_size,
                "bos_id": tokenizer.bos_id,
                "eos_id": tokenizer.eos_id,
                "pad_id": tokenizer.pad_id,
            },
            transform={key: getattr(self.transform, key) for key in TRANSFORM_KEYS},
            format=self.format,
            markers={
                "reason": dialect.reason,
                "act": dialect.act,
                "observation": dialect.observation,
                "stop": dialect.stop,
            },
            chat_template=tokenizer.chat_template,
            stop_tokens=list(self.stop_tokens),
            source={"sha256": source_hashes(self.student)},
            versions=_versions(),
            extra=dict(extra or {}),
        )


def source_hashes(student: Path) -> dict[str, str]:
    """SHA-256 by name of a student's config and weights."""
    files = [student / "config.json", *sorted(student.glob("*.safetensors"))]
    return {file.name: file_hash(file) for file in files}


def copy_tokenizer(tokenizer: HFTokenizer, out_dir: Path) -> None:
    """Writes a tokenizer's files, and the chat template that it really uses.

    Args:
        tokenizer: of a folder.
        out_dir: an existing folder.
    """
    for name in TOKENIZER_FILES:
        if (tokenizer.path / name).is_file():
            shutil.copyfile(tokenizer.path / name, out_dir / name)
    if tokenizer.chat_template is not None:
        (out_dir / _TEMPLATE_FILE).write_text(tokenizer.chat_template, encoding="utf-8")


def write_executorch(
    out_dir: Path,
    facts: Facts,
    variant: Variant,
    name: str,
    max_seq_len: int | None = None,
    prefill_tokens: int = 128,
) -> Manifest:
    """Writes a student as a ``.pte`` with tokenizer and manifest; what the manifest says.

    It is not compared with anything here.

    Args:
        out_dir: an empty folder.
        facts: the student.
        variant: how its numbers are held.
        name: of the variant, for people.
        max_seq_len: positions of the cache; None: the student's context.
        prefill_tokens: most tokens that one call reads.

    Raises:
        ImportError: ExecuTorch is not set up.
        ValueError: the student cannot be exported so; it says why.
    """
    require_executorch()
    chosen = exported_variant(facts.student, variant)
    model = prepare(facts.student, chosen)
    vocabulary = vocab_size_of(model)
    length = max_seq_len or model.max_seq_len
    if length > model.max_seq_len:
        raise ValueError(
            f"max_seq_len is {length}, but the student reads {model.max_seq_len} tokens: lower it"
        )
    chunk = min(prefill_tokens, length)
    layers = len(model.layers)
    tokenizer = facts.tokenizer
    # The names are those that ExecuTorch's own LLM runners ask for.
    constants = {
        "get_max_seq_len": chunk,
        "get_max_context_len": length,
        "get_vocab_size": vocabulary,
        "get_n_layers": layers,
        "get_bos_id": -1 if tokenizer.bos_id is None else tokenizer.bos_id,
        "get_eos_ids": list(facts.stop_tokens),
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
    }
    lowered = lower(ExportDecoder(model, length), out_dir / PTE_FILE, chunk, constants)
    copy_tokenizer(tokenizer, out_dir)
    manifest = facts.manifest(
        kind="executorch",
        variant=name,
        model_file=PTE_FILE,
        max_seq_len=length,
        prefill_tokens=chunk,
        vocab_size=vocabulary,
        quantization=chosen.described(),
        extra={"backend": "xnnpack", "delegated": lowered["delegated"]},
    )
    return write_manifest(out_dir, manifest)


def write_gguf_export(
    out_dir: Path, facts: Facts, dtype: str, name: str, max_seq_len: int | None = None
) -> Manifest:
    """Writes a student as a GGUF with tokenizer and manifest; what the manifest says.

    Args:
        out_dir: an empty folder.
        facts: the student.
        dtype: of the large matrices, see ``sad_components.export.gguf.write_gguf``.
        name: of the variant, for people.
        max_seq_len: longest sequence; None: the student's context.

    Raises:
        ValueError: the student cannot be a GGUF, or is quantised already.
    """
    config = load_hf_config(facts.student)
    if quantized_scheme(config) is not None:
        raise ValueError(f"{facts.student} is quantised: write the GGUF of the student itself")
    with torch.device("meta"):
        model = build_decoder(config)
    write_gguf(facts.student, out_dir / GGUF_FILE, dtype, tokenizer_dir=facts.tokenizer.path)
    copy_tokenizer(facts.tokenizer, out_dir)
    length = max_seq_len or model.max_seq_len
    manifest = facts.manifest(
        kind="gguf",
        variant=name,
        model_file=GGUF_FILE,
        max_seq_len=length,
        prefill_tokens=length,
        vocab_size=vocab_size_of(model),
        quantization={} if dtype == "fp32" else {"weights": dtype},
    )
    return write_manifest(out_dir, manifest)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
