"""Weights between Hugging Face's ``Qwen3ForCausalLM`` and torchtune, both ways: names only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sad_components.models.renaming import LLAMA_INSIDE, LLAMA_OUTSIDE, Renaming, without

_NORMS = {f"self_attn.{name}_norm.weight": f"attn.{name}_norm.scale" for name in "qk"}
_NAMES = Renaming("qwen3 (without biases)", LLAMA_OUTSIDE, {**LLAMA_INSIDE, **_NORMS})


def qwen3_hf_to_tune(
    state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """State dict of the torchtune decoder, from that of ``Qwen3ForCausalLM``.

    Raises:
        ValueError: a tensor that this architecture does not have.
    """
    tied = ["lm_head.weight"] if config.get("tie_word_embeddings", False) else []
    return _NAMES.to_tune(without(state_dict, "rotary_emb.inv_freq", *tied))


def qwen3_tune_to_hf(
    state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """State dict of ``Qwen3ForCausalLM``, from that of the torchtune decoder; the inverse.

    Raises:
        ValueError: a tensor that this architecture does not have.
    """
    return _NAMES.to_hf(state_dict)
