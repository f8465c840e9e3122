"""Tiny random models of every family as transformers makes them: the references of the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB, CONTEXT = 97, 64
_LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
}
_OPT = {
    "model_type": "opt",
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "ffn_dim": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": CONTEXT,
}
_GPT2 = {
    "model_type": "gpt2",
    "vocab_size": VOCAB,
    "n_positions": CONTEXT,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 6,
}
_SCALED = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

#: By name, what config.json says; at least one of each family and of each of its variants.
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2,
    "gpt2-untied-narrow": {**_GPT2, "n_inner": 80, "tie_word_embeddings": False},
    "opt": _OPT,
    "opt-350m": {**_OPT, "word_embed_proj_dim": 24, "do_layer_norm_before": False},
    "opt-projected": {**_OPT, "word_embed_proj_dim": 24},
    "llama2": {**_LLAMA, "model_type": "llama", "num_key_value_heads": 6},
    "llama3": {**_LLAMA, "model_type": "llama", "rope_parameters": _SCALED},
    "llama3.2": {
        **{**_LLAMA, "model_type": "llama", "rope_parameters": _SCALED},
        **{"tie_word_embeddings": True, "head_dim": 12},
    },
    "smollm2": {**_LLAMA, "model_type": "llama", "tie_word_embeddings": True},
    "mistral": {**_LLAMA, "model_type": "mistral", "sliding_window": None},
    "mistral-wide-window": {**_LLAMA, "model_type": "mistral", "sliding_window": CONTEXT},
    "qwen2.5-7b": {**_LLAMA, "model_type": "qwen2"},
    "qwen2.5-0.5b": {**_LLAMA, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3-8b": {**_LLAMA, "model_type": "qwen3", "head_dim": 16},
    "qwen3-0.6b": {
        **_LLAMA,
        **{"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    },
}


def reference(name: str, **changes: Any) -> PreTrainedModel:
    """transformers' model of that config, in eval mode, no parameter at a special value.

    Biases that are zero and norms that are one would hide a wrong order of rows.
    """
    settings = {**CONFIGS[name], **changes}
    config = AutoConfig.for_model(**settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def write_reference(name: str, folder: Path, **changes: Any) -> Path:
    """A folder in Hugging Face format, written by transformers itself."""
    reference(name, **changes).save_pretrained(folder)
    return folder
