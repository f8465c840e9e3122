"""The model families this project can read and write, by Hugging Face's ``model_type``.

To add one: write its package under ``sad_components/models/`` and add an entry to ``FAMILIES``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchtune.modules import TransformerDecoder

from sad_components.models.smollm2 import (
    is_smollm2,
    smollm2_from_hf_config,
    smollm2_hf_config,
    smollm2_hf_to_tune,
    smollm2_tune_to_hf,
)

StateDict = Mapping[str, torch.Tensor]
HFConfig = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Family:
    """How one architecture goes between Hugging Face's format and torchtune's.

    Args:
        model_type: what ``config.json`` calls it.
        layers_key: the config's name for the number of layers.
        build: a decoder with random weights, from a config.
        to_tune: state dict under torchtune's names, from one under Hugging Face's and a config.
        to_hf: the inverse.
        hf_config: the config that describes a decoder.
        matches: whether a module is a decoder of this family.
    """

    model_type: str
    layers_key: str
    build: Callable[[HFConfig], TransformerDecoder]
    to_tune: Callable[[StateDict, HFConfig], dict[str, torch.Tensor]]
    to_hf: Callable[[StateDict, HFConfig], dict[str, torch.Tensor]]
    hf_config: Callable[[TransformerDecoder], dict[str, Any]]
    matches: Callable[[nn.Module], bool]


def _llama_heads(config: HFConfig) -> tuple[int, int]:
    heads = config["num_attention_heads"]
    return heads, config.get("num_key_value_heads") or heads


def _llama_to_tune(state_dict: StateDict, config: HFConfig) -> dict[str, torch.Tensor]:
    tied = config.get("tie_word_embeddings", False)
    return smollm2_hf_to_tune(state_dict, *_llama_heads(config), tie_word_embeddings=tied)


def _llama_to_hf(state_dict: StateDict, config: HFConfig) -> dict[str, torch.Tensor]:
    return smollm2_tune_to_hf(state_dict, *_llama_heads(config))


FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            model_type="llama",
            layers_key="num_hidden_layers",
            build=smollm2_from_hf_config,
            to_tune=_llama_to_tune,
            to_hf=_llama_to_hf,
            hf_config=smollm2_hf_config,
            matches=is_smollm2,
        ),
    )
}


def family_of_config(config: HFConfig) -> Family:
    """The family that ``config`` (content of a ``config.json``) belongs to.

    Raises:
        ValueError: an unknown ``model_type``, or quantised weights.
    """
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(f"model_type must be one of {sorted(FAMILIES)}; got {model_type!r}")
    if config.get("quantization_config"):
        raise ValueError(
            "the checkpoint holds quantised weights (quantization_config); "
            "take the bf16 or fp32 version of this model"
        )
    return FAMILIES[model_type]


def family_of_model(model: nn.Module) -> Family:
    """The family whose structure ``model`` has.

    Raises:
        ValueError: none has it.
    """
    for family in FAMILIES.values():
        if family.matches(model):
            return family
    raise ValueError(
        f"{type(model).__name__} has the structure of none of the families {sorted(FAMILIES)}; "
        "it cannot be described by a Hugging Face config"
    )
