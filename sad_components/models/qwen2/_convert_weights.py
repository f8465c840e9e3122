"""Weights between Hugging Face's ``Qwen2ForCausalLM`` and torchtune, both ways.

Only names change: torchtune's rotary embedding of this family pairs elements as Hugging Face does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sad_components.models.renaming import LLAMA_INSIDE, LLAMA_OUTSIDE, Renaming, without

_BIASES = {f"self_attn.{name}_proj.bias": f"attn.{name}_proj.bias" for name in "qkv"}
_NAMES = Renaming("qwen2", LLAMA_OUTSIDE, {**LLAMA_INSIDE, **_BIASES})


def qwen2_hf_to_tune(
    state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """State dict of the torchtune decoder, from that of ``Qwen2ForCausalLM``.

    Raises:
        ValueError: a tensor that this architecture does not have.
    """
    tied = ["lm_head.weight"] if config.get("tie_word_embeddings", False) else []
    return _NAMES.to_tune(without(state_dict, "rotary_emb.inv_freq", *tied))


def qwen2_tune_to_hf(
    state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """State dict of ``Qwen2ForCausalLM``, from that of the torchtune decoder; the inverse.

    Raises:
        ValueError: a tensor that this architecture does not have.
    """
    return _NAMES.to_hf(state_dict)
