"""What a model family has to say about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchtune.modules import TransformerDecoder

from sad_components.models.widths import Widths

StateDict = Mapping[str, torch.Tensor]
HFConfig = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Family:
    """How one architecture goes between Hugging Face's format and torchtune's.

    Args:
        model_type: what ``config.json`` calls it.
        layers_key: the config's name for the number of layers.
        build: a decoder with random weights, from a config; its blocks are named ``layers.N``.
        to_tune: state dict under torchtune's names, from one under Hugging Face's and a config.
        to_hf: the inverse.
        hf_config: the settings that can be read off a decoder. What it does not name is taken
            over from the config that the decoder was built from, if there is one.
        matches: whether a module has the structure of this family.
        widths: what of its tensors can be made narrower; None: nothing but its depth changes.
    """

    model_type: str
    layers_key: str
    build: Callable[[HFConfig], TransformerDecoder]
    to_tune: Callable[[StateDict, HFConfig], dict[str, torch.Tensor]]
    to_hf: Callable[[StateDict, HFConfig], dict[str, torch.Tensor]]
    hf_config: Callable[[TransformerDecoder], dict[str, Any]]
    matches: Callable[[nn.Module], bool]
    widths: Widths | None = None
