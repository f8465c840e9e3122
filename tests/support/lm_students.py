"""Tiny random students in Hugging Face format, with the household's tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

from hf_families import write_reference

from sad_components.data.shipped import resolve_folder

CONTEXT = 256


def with_tokenizer(folder: Path) -> Path:
    """Puts the household's tokenizer into a model's folder."""
    for file in resolve_folder("shipped:household/tokenizer").iterdir():
        shutil.copy(file, folder)
    return folder


def make_student(family: str, folder: Path, context: int = CONTEXT) -> Path:
    """A random model of a family, written by transformers."""
    length = "n_positions" if family.startswith("gpt2") else "max_position_embeddings"
    write_reference(family, folder, vocab_size=512, **{length: context})
    return with_tokenizer(folder)
