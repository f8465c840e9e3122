"""The models that a config names, on the meta device: their shapes without their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torchtune import training
from torchtune.modules import TransformerDecoder

from sad_components.models.checkpoint import CONFIG_FILE, load_hf_config
from sad_components.models.families import build_decoder, family_of_config
from sad_components.models.lora import add_lora_, without_adapters
from sad_components.models.pretrained import (
    check_same_size,
    cut_student,
    from_pretrained,
    from_scratch,
    named_size,
    set_dropout_,
)
from sad_components.models.quantized import load_quantized, quantized_scheme
from sad_components.training.config import build, checked_component, is_null
from sad_components.training.teachers import Teacher


def on_meta(node: DictConfig | None, where: str, dtype: torch.dtype) -> TransformerDecoder | None:
    """The decoder of a config node without its weights; None for no model or a written teacher.

    A folder that is not there yet is replaced by the node's ``builder``.

    Args:
        node: as a recipe's ``student`` or ``teacher``.
        where: the node's name, for messages.
        dtype: of the parameters.

    Raises:
        ValueError: a node that cannot be built, a folder without ``config.json``, or one that
            holds another architecture than ``builder``.
    """
    if is_null(node):
        return None
    component, _, adapters = without_adapters(checked_component(node, where), node)
    with training.set_default_dtype(dtype), torch.device("meta"):
        if component in (from_pretrained, cut_student, load_quantized):
            model = _of_folder(node)
        elif component is from_scratch:
            given = node.config
            plain = OmegaConf.is_dict(given)
            config = OmegaConf.to_container(given, resolve=True) if plain else load_hf_config(given)
            model = build_decoder(config)
        elif isinstance(component, type) and issubclass(component, Teacher):
            return None
        else:
            return set_dropout_(build(node, where), node.get("dropout"))
        set_dropout_(model, node.get("dropout"))
        return model if adapters is None else add_lora_(model, **adapters)


def folder_of(node: DictConfig | None) -> Path | None:
    """The folder that a model node reads, if it reads one."""
    path = None if is_null(node) else node.get("path")
    return None if path is None else Path(path)


def base_folder_of(node: DictConfig) -> Path | None:
    """The folder that holds a student's weights as they are before training; None for none.

    That of a cut student or of one with random weights is nowhere.
    """
    component, _, _ = without_adapters(checked_component(node, "student"), {})
    return folder_of(node) if component is from_pretrained else None


def _of_folder(node: DictConfig) -> TransformerDecoder:
    path, builder = node.path, node.get("builder")
    if builder is not None and not (Path(path) / CONFIG_FILE).is_file():
        return named_size(builder)
    config: dict[str, Any] = load_hf_config(path)
    if quantized_scheme(config) is not None:
        config.pop("quantization_config")  # the shapes are those of the plain student
    if builder is not None:
        check_same_size(config, builder, path)
    kept = node.get("num_layers") or len(node.get("layers") or ())
    if kept:
        config[family_of_config(config).layers_key] = kept
    return build_decoder(config)
