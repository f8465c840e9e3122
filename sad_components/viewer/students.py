"""A student's folder of any kind, opened for one conversation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sad_components.data.tokenizers import HFTokenizer
from sad_components.data.transform import SpanTokenizer
from sad_components.evaluation.decoding import CachedDecoder, NextToken
from sad_components.export import is_export, load_exported
from sad_components.export.model_card import transform_options
from sad_components.models import from_pretrained
from sad_components.models.checkpoint import load_hf_config
from sad_components.models.quantized import load_quantized, quantized_scheme


def open_student(
    path: str | Path, tokenizer: str | None = None, style: str | None = None
) -> tuple[NextToken, SpanTokenizer, str]:
    """What gives the logits, how it is shown transcripts, and their format.

    Args:
        path: a folder in Hugging Face format, quantised or not, or an exported one.
        tokenizer: folder of the tokenizer, where it is not the model's.
        style: ``chat`` or ``plain``; None: what the folder's manifest or card says, else ``chat``.

    Raises:
        ImportError: an export whose runtime is not installed.
        ValueError: no folder of these kinds, or a damaged one.
    """
    if is_export(path):
        if tokenizer is not None:
            raise ValueError(f"{path} is an export and brings its tokenizer: leave out --tokenizer")
        student = load_exported(path)
        transform = student.transform
        if style is not None and style != transform.style:
            raise ValueError(f"{path} was exported for {transform.style} style; got {style}")
        return student, transform, student.manifest.format
    options = transform_options(path, style)
    transform = SpanTokenizer(HFTokenizer(str(tokenizer or path)), **options)
    model = load_model(path)
    return CachedDecoder(model, transform.tokenizer.vocab_size), transform, "react"


def load_model(path: str | Path) -> Any:
    """The decoder in a folder in Hugging Face format, quantised or not."""
    if quantized_scheme(load_hf_config(path)) is not None:
        return load_quantized(path)
    return from_pretrained(path)
