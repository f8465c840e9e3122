"""Students as lm-eval's model reads them: whatever kind of folder they lie in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchtune.modules import TransformerDecoder
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sad_components.evaluation.decoding import CachedDecoder, FullDecoder, NextToken
from sad_components.export.manifest import is_export
from sad_components.export.student import load_exported
from sad_components.lm_harness.scoring import DecoderScorer, ExportScorer, Scorer
from sad_components.models.checkpoint import load_hf_config
from sad_components.models.hidden import num_parameters
from sad_components.models.pretrained import from_pretrained
from sad_components.models.quantized import load_quantized

#: What config.json calls the dtype of its weights, in old and new transformers.
_DTYPE_KEYS = ("dtype", "torch_dtype")
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass
class Student:
    """A model that scores and goes on.

    Args:
        kind: ``torchtune``, ``quantized``, or an export's: ``executorch``, ..
        scorer: for log-likelihoods.
        max_length: longest sequence it reads, in tokens.
        dtype: of its weights.
        parameters: how many; None where nobody knows.
        decoder: the torchtune decoder, if it is one.
        next_token: what generates, if it is no decoder.
        sessions: sequences that it goes on with side by side; None: any number.
    """

    kind: str
    scorer: Scorer
    max_length: int
    dtype: str
    parameters: int | None = None
    decoder: TransformerDecoder | None = None
    next_token: NextToken | None = None
    sessions: int | None = None

    def begin_generation(self) -> NextToken:
        """Gives the next token's logits; :meth:`end_generation` comes after."""
        if self.next_token is None:
            assert self.decoder is not None
            try:
                self.next_token = CachedDecoder(self.decoder)
            except ValueError:  # its attention keeps no cache
                self.next_token = FullDecoder(self.decoder)
        return self.next_token

    def end_generation(self) -> None:
        """Gives a decoder back as it was."""
        if self.decoder is not None:
            if isinstance(self.next_token, CachedDecoder):
                self.next_token.close()
            self.next_token = None


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, as its ``tokenizer.json`` has it.

    transformers 5's ``AutoTokenizer`` goes by the model's type: for a Qwen with a tokenizer of its
    own it puts Qwen's rule for cutting texts in the place of the file's, which gives other tokens.

    Args:
        folder: with a tokenizer.
    """
    exact = (Path(folder) / "tokenizer.json").is_file()
    loader = PreTrainedTokenizerFast if exact else AutoTokenizer
    return loader.from_pretrained(str(folder), local_files_only=True)


def load_student(
    path: str | Path, dtype: str | torch.dtype | None, device: torch.device
) -> Student:
    """The student in a folder.

    Args:
        path: a folder in Hugging Face format, plain or quantised by this project, or an export.
        dtype: of the weights; None or ``auto``: as they are stored.
        device: where a decoder is built.

    Raises:
        ImportError: the runtime of an export is not installed.
        ValueError: the folder holds no student, or a dtype was asked for that it cannot have.
    """
    folder = Path(path)
    if is_export(folder):
        exported = load_exported(folder)
        variant, longest = exported.manifest.variant, exported.max_seq_len
        scorer = ExportScorer(exported)
        kind = exported.manifest.kind
        return Student(kind, scorer, longest, variant, next_token=exported, sessions=1)
    config = load_hf_config(folder)
    stored = _stored_dtype(config)
    wanted = stored if dtype in (None, "auto") else _dtype_of(dtype)
    if config.get("quantization_config"):
        if wanted != stored:
            raise ValueError(
                f"{folder} holds quantised weights made in {stored}; dtype is auto, or {stored}, "
                f"for such a student; got {dtype}"
            )
        return _of_decoder("quantized", load_quantized(folder, device), stored)
    model = from_pretrained(folder, dtype=wanted, device=device)
    return _of_decoder("torchtune", model, wanted)


def _of_decoder(kind: str, model: TransformerDecoder, dtype: torch.dtype) -> Student:
    return Student(
        kind,
        DecoderScorer(model),
        model.max_seq_len,
        str(dtype).removeprefix("torch."),
        num_parameters(model),
        decoder=model,
    )


def _stored_dtype(config: dict[str, Any]) -> torch.dtype:
    return _dtype_of(next((config[key] for key in _DTYPE_KEYS if config.get(key)), "float32"))


def _dtype_of(name: str | torch.dtype) -> torch.dtype:
    if isinstance(name, torch.dtype):
        return name
    short = str(name).removeprefix("torch.")
    found = getattr(torch, _SHORT.get(short, short), None)
    if found not in _DTYPES:
        raise ValueError(f"dtype is auto, float32, bfloat16 or float16; got {name!r}")
    return found
