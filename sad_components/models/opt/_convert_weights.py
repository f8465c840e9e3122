"""Weights between Hugging Face's ``OPTForCausalLM`` and torchtune, both ways: names only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sad_components.models.renaming import Renaming

_MODULES = {
    "self_attn.q_proj": "attn.q_proj",
    "self_attn.k_proj": "attn.k_proj",
    "self_attn.v_proj": "attn.v_proj",
    "self_attn.out_proj": "attn.output_proj",
    "self_attn_layer_norm": "sa_norm",
    "fc1": "mlp.w1",
    "fc2": "mlp.w2",
    "final_layer_norm": "mlp_norm",
}
_NAMES = Renaming(
    "opt",
    outside={
        "decoder.embed_tokens.weight": "tok_embeddings.weight",
        "decoder.embed_positions.weight": "positions.weight",
        "decoder.project_in.weight": "project_in.weight",
        "decoder.project_out.weight": "norm.project_out.weight",
        "decoder.final_layer_norm.weight": "norm.final.weight",
        "decoder.final_layer_norm.bias": "norm.final.bias",
        "lm_head.weight": "output.weight",
    },
    inside={
        f"{hf}.{kind}": f"{tune}.{kind}"
        for hf, tune in _MODULES.items()
        for kind in ("weight", "bias")
    },
    layers="decoder.layers.",
)
_PREFIX = "model."


def opt_hf_to_tune(
    state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """State dict of the torchtune decoder, from that of ``OPTForCausalLM``.

    Args:
        state_dict: tensors by Hugging Face name, with or without ``model.`` in front (some
            published files have none).
        config: content of its ``config.json``.

    Raises:
        ValueError: a tensor that this architecture does not have.
    """
    named = {name.removeprefix(_PREFIX): tensor for name, tensor in state_dict.items()}
    if config.get("tie_word_embeddings", True):
        named.pop("lm_head.weight", None)
    return _NAMES.to_tune(named)


def opt_tune_to_hf(
    state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """State dict of ``OPTForCausalLM``, from that of the torchtune decoder; the inverse.

    Raises:
        ValueError: a tensor that this architecture does not have.
    """
    named = _NAMES.to_hf(state_dict)
    return {k if k == "lm_head.weight" else _PREFIX + k: v for k, v in named.items()}
