"""A llama-like GGUF file (llama.cpp's format) turned into a folder in Hugging Face format.

GGUF stores the query and key projections in the interleaved order that torchtune's rotary
embedding expects; names become torchtune's first, and the family's own conversion does the rest.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from gguf.constants import TokenType
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sad_components.models.checkpoint import GENERATION_FILE, save_hf_folder
from sad_components.models.families import family_of_config

_OUTSIDE_LAYERS = {
    "token_embd.weight": "tok_embeddings.weight",
    "output_norm.weight": "norm.scale",
    "output.weight": "output.weight",
}
_INSIDE_LAYER = {
    "attn_norm.weight": "sa_norm.scale",
    "attn_q.weight": "attn.q_proj.weight",
    "attn_k.weight": "attn.k_proj.weight",
    "attn_v.weight": "attn.v_proj.weight",
    "attn_output.weight": "attn.output_proj.weight",
    "ffn_norm.weight": "mlp_norm.scale",
    "ffn_gate.weight": "mlp.w1.weight",
    "ffn_down.weight": "mlp.w2.weight",
    "ffn_up.weight": "mlp.w3.weight",
}
_BLOCK = re.compile(r"^blk\.(\d+)\.(.+)$")


def gguf_to_hf_folder(
    gguf_file: str | Path, out_dir: str | Path, dtype: torch.dtype = torch.bfloat16
) -> Path:
    """Writes the model and tokenizer of ``gguf_file`` to ``out_dir``; returns its path.

    Args:
        gguf_file: architecture ``llama`` with a byte-level BPE tokenizer (``gpt2``/``smollm``);
            quantised tensors are dequantised.
        out_dir: the folder to make or replace.
        dtype: of the stored weights. bf16 rounds the 4-bit weights by at most 0.4 %, far below
            what their quantisation has lost, at half of fp32's size.

    Raises:
        ValueError: the file is not readable, another architecture or tokenizer, or a tensor
            that is unknown, missing or misshapen.
    """
    try:
        reader = GGUFReader(gguf_file)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{gguf_file} is not a readable GGUF file: {error}") from error
    weights = _tune_state_dict(reader, dtype)
    config = _hf_config(metadata, weights, dtype)
    family = family_of_config(config)
    _check_shapes(family.build, config, weights, gguf_file)
    with tempfile.TemporaryDirectory() as tokenizer_dir:
        _write_tokenizer(metadata, Path(tokenizer_dir))
        return save_hf_folder(out_dir, family.to_hf(weights, config), config, tokenizer_dir)


def _tune_state_dict(reader: GGUFReader, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    state_dict = {}
    for tensor in reader.tensors:
        block = _BLOCK.match(tensor.name)
        if block and block[2] in _INSIDE_LAYER:
            name = f"layers.{int(block[1])}.{_INSIDE_LAYER[block[2]]}"
        elif tensor.name in _OUTSIDE_LAYERS:
            name = _OUTSIDE_LAYERS[tensor.name]
        else:
            raise ValueError(
                f"GGUF tensor {tensor.name!r} is unknown; a llama model has "
                f"{', '.join(_OUTSIDE_LAYERS)} and, per block, {', '.join(_INSIDE_LAYER)}"
            )
        state_dict[name] = torch.tensor(dequantize(tensor.data, tensor.tensor_type), dtype=dtype)
    return state_dict


def _hf_config(
    metadata: dict[str, Any], weights: dict[str, torch.Tensor], dtype: torch.dtype
) -> dict[str, Any]:
    architecture = _required(metadata, "general.architecture")
    if architecture != "llama":
        raise ValueError(f"the GGUF's architecture must be 'llama'; got {architecture!r}")
    if metadata.get("llama.rope.scaling.type", "none") != "none":
        raise ValueError("the GGUF asks for scaled rotary positions, which this family has not")
    heads = _required(metadata, "llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(_required(metadata, "tokenizer.ggml.tokens")),
        "hidden_size": _required(metadata, "llama.embedding_length"),
        "intermediate_size": _required(metadata, "llama.feed_forward_length"),
        "num_hidden_layers": len({name.split(".")[1] for name in weights if "layers." in name}),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", heads),
        "max_position_embeddings": _required(metadata, "llama.context_length"),
        "rope_theta": float(metadata.get("llama.rope.freq_base", 10_000.0)),
        # stored as fp32: 1e-5 reads 9.9999997e-06
        "rms_norm_eps": float(
            f"{_required(metadata, 'llama.attention.layer_norm_rms_epsilon'):.6g}"
        ),
        "tie_word_embeddings": "output.weight" not in weights,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **_token_ids(metadata),
    }


def _check_shapes(
    build: Any, config: dict[str, Any], weights: dict[str, torch.Tensor], source: str | Path
) -> None:
    with torch.device("meta"):
        expected = {name: t.shape for name, t in build(config).state_dict().items()}
    found = {name: t.shape for name, t in weights.items()}
    wrong = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    if wrong:
        raise ValueError(
            f"{source}: tensors missing or of another shape than its metadata says: {wrong[:5]}"
        )


def _write_tokenizer(metadata: dict[str, Any], folder: Path) -> None:
    """``tokenizer.json``, ``tokenizer_config.json`` and the rest, from the GGUF's vocabulary."""
    kind = (metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise ValueError(
            f"the GGUF's tokenizer must be byte-level BPE ('gpt2', 'smollm'); got {kind}"
        )
    tokens = _required(metadata, "tokenizer.ggml.tokens")
    merges = [tuple(pair.split(" ", 1)) for pair in _required(metadata, "tokenizer.ggml.merges")]
    types = _required(metadata, "tokenizer.ggml.token_type")
    bpe = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    tokenizer = Tokenizer(bpe)
    # 'smollm' splits numbers into digits before the byte-level step
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, types, strict=True) if kind == TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in special])
    tokenizer.save(str(folder / "tokenizer.json"))

    ids = _token_ids(metadata)
    ids_by_name = {**ids, "unk_token_id": metadata.get("tokenizer.ggml.unknown_token_id")}
    names = {k.removesuffix("_id"): tokens[i] for k, i in ids_by_name.items() if i is not None}
    _write_json(folder / "special_tokens_map.json", names)
    _write_json(folder / GENERATION_FILE, ids)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": _required(metadata, "llama.context_length"),
            "clean_up_tokenization_spaces": False,
            "additional_special_tokens": special,
            "chat_template": metadata.get("tokenizer.chat_template"),
            **names,
        },
    )


def _token_ids(metadata: dict[str, Any]) -> dict[str, int | None]:
    return {
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }


def _required(metadata: dict[str, Any], key: str) -> Any:
    if key not in metadata:
        raise ValueError(f"the GGUF file must say {key!r}; its metadata lacks it")
    return metadata[key]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
