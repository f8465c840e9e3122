"""Students as GGUF files, llama.cpp's format.

Names and layouts are those that llama.cpp's loader expects: llama-like models of arch ``llama``
(Llama, SmolLM2, Mistral) keep queries and keys in interleaved rotary order, Qwen's in Hugging
Face's; GPT-2's projections are stored [out, in]. docs/export.md says what was run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFWriter
from gguf.constants import (
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    LlamaFileType,
)
from gguf.quants import quantize
from gguf.tensor_mapping import get_tensor_name_map
from torch import Tensor

from sad_components.export.gguf_tokenizer import GGUFTokenizer, gguf_tokenizer
from sad_components.models.checkpoint import load_hf_folder
from sad_components.models.families import build_decoder
from sad_components.models.hf_settings import Rope, rope_of

#: dtype of the large matrices -> their type in the file, and the file's own type.
DTYPES = {
    "fp32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "fp16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
#: Weights that share a scale in Q8_0.
_BLOCK = 32
#: model_type of config.json -> llama.cpp's architecture.
ARCHITECTURES = {
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "gpt2": MODEL_ARCH.GPT2,
}
_ROPE_FACTORS = "rope_freqs.weight"
_SUFFIXES = (".weight", ".bias")
#: Of GPT-2: stored [in, out] by Hugging Face.
_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


@dataclass(frozen=True)
class GGUFReport:
    """What was written.

    Args:
        path: the file.
        architecture: llama.cpp's name of it.
        dtype: of the large matrices.
        tensors: how many.
        unquantized: names of matrices that are fp16, because their rows are no multiple of a
            Q8_0 block; empty otherwise.
        bytes: size of the file.
    """

    path: Path
    architecture: str
    dtype: str
    tensors: int
    unquantized: list[str]
    bytes: int


def write_gguf(
    student_dir: str | Path,
    out_path: str | Path,
    dtype: str = "fp16",
    name: str | None = None,
    licence: str | None = None,
    tokenizer_dir: str | Path | None = None,
) -> GGUFReport:
    """Writes a student as a GGUF file, replacing an older one as a whole.

    Args:
        student_dir: folder in Hugging Face format, with its tokenizer.
        out_path: the file.
        dtype: of the large matrices: ``fp32``, ``fp16``, ``bf16`` or ``q8_0``. Norms, biases and
            learned positions are fp32.
        name: of the model, for people; None: the folder's name.
        licence: of the weights, for people.
        tokenizer_dir: whose tokenizer goes into the file; None: the student's.

    Raises:
        ValueError: a dtype that is none of these, a family or a setting that llama.cpp cannot run,
            a tokenizer that it has no rule for, or a folder that is not readable.
    """
    if dtype not in DTYPES:
        raise ValueError(f"a GGUF's dtype is one of {', '.join(DTYPES)}; got {dtype!r}")
    checkpoint = load_hf_folder(student_dir)
    config = checkpoint.config
    architecture = _architecture(config)
    with torch.device("meta"):
        build_decoder(config)  # refuses settings that the family, and so this writer, has not
    tokenizer = gguf_tokenizer(tokenizer_dir or student_dir, _vocab_size(config))
    tensors = dict(_tensors(checkpoint.state_dict, config, architecture))
    target = Path(out_path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.part")
    kind, file_type = DTYPES[dtype]
    writer = GGUFWriter(aside, MODEL_ARCH_NAMES[architecture])
    try:
        writer.add_name(name or Path(student_dir).resolve().name)
        if licence:
            writer.add_license(licence)
        writer.add_file_type(file_type)
        _add_settings(writer, config, architecture)
        _add_tokenizer(writer, tokenizer)
        plain = _add_tensors(writer, tensors, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        descriptor = os.open(aside, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(aside, target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return GGUFReport(
        target,
        MODEL_ARCH_NAMES[architecture],
        dtype,
        len(tensors),
        plain,
        target.stat().st_size,
    )


def _architecture(config: Mapping[str, Any]) -> MODEL_ARCH:
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        raise ValueError(
            f"llama.cpp runs {', '.join(ARCHITECTURES)} of the families known here; this student "
            f"is a {model_type!r}: export it to ExecuTorch (kind: executorch, or sad export --pte)"
        )
    if config.get("quantization_config"):
        raise ValueError(
            "a GGUF is made of a student in fp32 or bf16; this folder holds quantised weights: "
            "take the student they were made of, with dtype: q8_0"
        )
    return ARCHITECTURES[model_type]


# -- tensors -------------------------------------------------------------------------------------


def _tensors(
    state_dict: Mapping[str, Tensor], config: Mapping[str, Any], architecture: MODEL_ARCH
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under GGUF's name, in llama.cpp's layout."""
    names = get_tensor_name_map(architecture, _depth(config))
    change = _CHANGES.get(architecture, lambda name, tensor, config: tensor)
    tied = bool(config.get("tie_word_embeddings", architecture is MODEL_ARCH.GPT2))
    for hf_name, tensor in state_dict.items():
        if hf_name.endswith((".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")):
            continue  # buffers of old checkpoints
        if tied and hf_name == "lm_head.weight":
            continue
        name = names.get_name(hf_name, try_suffixes=_SUFFIXES)
        if name is None:
            raise ValueError(
                f"llama.cpp's {MODEL_ARCH_NAMES[architecture]} has no place for the tensor "
                f"{hf_name!r}: export this student to ExecuTorch (kind: executorch, or sad export "
                "--pte)"
            )
        yield name, change(hf_name, tensor, config)
    factors = _rope_factors(config)
    if factors is not None:
        yield _ROPE_FACTORS, factors


def _interleaved(name: str, tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Queries and keys with the two halves of each head's rotary pairs side by side."""
    heads = {
        "q_proj.weight": config["num_attention_heads"],
        "k_proj.weight": config.get("num_key_value_heads") or config["num_attention_heads"],
    }.get(".".join(name.rsplit(".", 2)[-2:]))
    if heads is None:
        return tensor
    rows, width = tensor.shape
    halves = tensor.view(heads, 2, rows // heads // 2, width)
    return halves.transpose(1, 2).reshape(rows, width)


def _out_by_in(name: str, tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
    return tensor.T if name.endswith(_TRANSPOSED) else tensor


_CHANGES: dict[MODEL_ARCH, Callable[[str, Tensor, Mapping[str, Any]], Tensor]] = {
    MODEL_ARCH.LLAMA: _interleaved,
    MODEL_ARCH.GPT2: _out_by_in,
}


def _rope_factors(config: Mapping[str, Any]) -> Tensor | None:
    """By how much Llama 3.1's scaling slows each rotary frequency, shape [head_dim / 2]."""
    if config["model_type"] != "llama":
        return None
    base, scaling = _rope(config)
    if scaling is None:
        return None
    width = _head_dim(config)
    slow, fast = scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling["original_max_position_embeddings"]
    frequency = base ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    turns = context * frequency / (2 * torch.pi)  # within the original context
    # below ``slow`` turns a frequency is divided by the factor, above ``fast`` it stays
    share = ((turns - slow) / (fast - slow)).clamp(0, 1)
    return 1 / ((1 - share) / scaling["factor"] + share)


def _add_tensors(
    writer: GGUFWriter, tensors: Mapping[str, Tensor], kind: GGMLQuantizationType
) -> list[str]:
    """Adds all tensors; the names of those that Q8_0 cannot hold and that are fp16 instead."""
    plain = []
    for name, tensor in tensors.items():
        chosen = kind
        if tensor.ndim < 2 or name == "position_embd.weight":
            chosen = GGMLQuantizationType.F32
        elif kind is GGMLQuantizationType.Q8_0 and tensor.shape[-1] % _BLOCK:
            chosen = GGMLQuantizationType.F16
            plain.append(name)
        values = np.ascontiguousarray(tensor.detach().to(torch.float32).numpy())
        writer.add_tensor(name, quantize(values, chosen), raw_dtype=chosen)
    return plain


# -- settings --------------------------------------------------------------------------------------


def _add_settings(writer: GGUFWriter, config: Mapping[str, Any], architecture: MODEL_ARCH) -> None:
    writer.add_block_count(_depth(config))
    writer.add_vocab_size(_vocab_size(config))
    if architecture is MODEL_ARCH.GPT2:
        writer.add_context_length(config["n_positions"])
        writer.add_embedding_length(config["n_embd"])
        writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
        writer.add_head_count(config["n_head"])
        writer.add_layer_norm_eps(config.get("layer_norm_epsilon", 1e-5))
        return
    heads = config["num_attention_heads"]
    width = _head_dim(config)
    writer.add_context_length(config.get("max_position_embeddings", 2048))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    writer.add_rope_freq_base(_rope(config).base)
    writer.add_rope_dimension_count(width)
    writer.add_key_length(width)
    writer.add_value_length(width)


def _add_tokenizer(writer: GGUFWriter, tokenizer: GGUFTokenizer) -> None:
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    if tokenizer.scores is not None:
        writer.add_token_scores(tokenizer.scores)
    if tokenizer.merges is not None:
        writer.add_token_merges(tokenizer.merges)
    add = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
    }
    for key, token in tokenizer.ids.items():
        add[key](token)
    writer.add_add_bos_token(tokenizer.adds_bos)
    writer.add_add_space_prefix(tokenizer.adds_space)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _depth(config: Mapping[str, Any]) -> int:
    return config["n_layer"] if config["model_type"] == "gpt2" else config["num_hidden_layers"]


def _vocab_size(config: Mapping[str, Any]) -> int:
    return config["vocab_size"]


def _head_dim(config: Mapping[str, Any]) -> int:
    default = 128 if config["model_type"] == "qwen3" else None
    return (
        config.get("head_dim") or default or config["hidden_size"] // config["num_attention_heads"]
    )


def _rope(config: Mapping[str, Any]) -> Rope:
    return rope_of(config, scalable=config["model_type"] == "llama")
