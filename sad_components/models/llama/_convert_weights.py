"""Weights between Hugging Face's ``LlamaForCausalLM`` and torchtune, both ways.

Both store the same numbers under different names, and the rows of the query and key projections
in a different order: Hugging Face rotates element ``i`` of a head together with element
``i + head_dim / 2``, torchtune element ``2 i`` together with ``2 i + 1``. Within each head,
therefore, rows ``(0, d/2, 1, d/2 + 1, ..)`` of the first are rows ``(0, 1, 2, 3, ..)`` of the
second. Names and row order are all that changes, so a round trip is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from sad_components.models.renaming import LLAMA_INSIDE, LLAMA_OUTSIDE, Renaming

_NAMES = Renaming("llama (without biases)", LLAMA_OUTSIDE, LLAMA_INSIDE)


def llama_hf_to_tune(
    state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """State dict of the torchtune decoder, from that of ``LlamaForCausalLM``.

    Args:
        state_dict: tensors by Hugging Face name; each ``(out, in)`` or ``(dim,)``.
        config: content of its ``config.json``.

    Raises:
        ValueError: a tensor that this architecture does not have.
    """
    return _reordered(_NAMES.hf_to_tune(state_dict, config), config, _to_interleaved)


def llama_tune_to_hf(
    state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """State dict of ``LlamaForCausalLM``, from that of the torchtune decoder; the inverse.

    Args:
        state_dict: tensors by torchtune name; each ``(out, in)`` or ``(dim,)``.
        config: content of its ``config.json``.

    Raises:
        ValueError: a tensor that this architecture does not have.
    """
    return _NAMES.tune_to_hf(_reordered(state_dict, config, _to_halves), config)


def _reordered(
    state_dict: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    reorder: Callable[[torch.Tensor, int], torch.Tensor],
) -> dict[str, torch.Tensor]:
    """The state dict, under torchtune's names, with rows of queries and keys in another order."""
    heads = config["num_attention_heads"]
    groups = config.get("num_key_value_heads") or heads
    by_ending = {"attn.q_proj.weight": heads, "attn.k_proj.weight": groups}
    reordered = {}
    for name, tensor in state_dict.items():
        number = next((n for ending, n in by_ending.items() if name.endswith(ending)), None)
        reordered[name] = tensor if number is None else reorder(tensor, number)
    return reordered


def _to_interleaved(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    out_dim, in_dim = weight.shape
    halves = weight.reshape(num_heads, 2, out_dim // num_heads // 2, in_dim)
    return halves.transpose(1, 2).reshape(out_dim, in_dim)


def _to_halves(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    out_dim, in_dim = weight.shape
    pairs = weight.reshape(num_heads, out_dim // num_heads // 2, 2, in_dim)
    return pairs.transpose(1, 2).reshape(out_dim, in_dim)
