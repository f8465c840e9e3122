"""Between a Hugging Face ``MistralConfig`` (as a plain dict) and a torchtune decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchtune.modules import TransformerDecoder

from sad_components.models.hf_settings import check_full_attention
from sad_components.models.llama import llama_from_hf_config, llama_hf_config

#: What transformers takes where a config names none.
_WINDOW = 4096
_CONTEXT = 4096 * 32
#: Settings of a llama that a MistralConfig does not have.
_NOT_MISTRALS = ("attention_bias", "mlp_bias")


def mistral_from_hf_config(config: Mapping[str, Any]) -> TransformerDecoder:
    """The decoder that a ``MistralConfig`` describes, with random weights.

    Raises:
        ValueError: a sliding window shorter than the context, and what
            :func:`sad_components.models.llama.llama_from_hf_config` raises.
    """
    given = {"max_position_embeddings": _CONTEXT, **config}
    given["num_key_value_heads"] = config.get("num_key_value_heads", 8) or None
    check_full_attention(given, config.get("sliding_window", _WINDOW))
    return llama_from_hf_config(given)


def mistral_hf_config(model: TransformerDecoder) -> dict[str, Any]:
    """The ``MistralConfig`` that describes ``model``; its window is the origin's."""
    settings = llama_hf_config(model)
    for key in _NOT_MISTRALS:
        del settings[key]
    return {**settings, "architectures": ["MistralForCausalLM"], "model_type": "mistral"}
