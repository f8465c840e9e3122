"""The student that a plan describes, as a folder in Hugging Face format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sad_components.models.checkpoint import TOKENIZER_FILES, HFCheckpoint, save_hf_folder
from sad_components.models.families import build_decoder, family_of_config
from sad_components.models.family import Family
from sad_components.models.widths import Unit, Widths
from sad_components.pruning.plan import Plan

_LAYER = re.compile(r"^layers\.(\d+)\.(.+)$")


def pruned(checkpoint: HFCheckpoint, plan: Plan) -> HFCheckpoint:
    """The student's config and weights, in the dtype of the teacher's.

    Args:
        checkpoint: the teacher.
        plan: made for it.

    Raises:
        ValueError: an unknown family, or one whose declared ``widths`` do not give a model.
    """
    family = family_of_config(checkpoint.config)
    weights = family.to_tune(checkpoint.state_dict, checkpoint.config)
    student = _pruned_weights(weights, plan, family.widths)
    config = _pruned_config(checkpoint.config, plan, family)
    with torch.device("meta"):
        model = build_decoder(config)
    try:
        model.load_state_dict(student, strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"the pruned weights do not fit the pruned config: the widths that the "
            f"{family.model_type} family declares (Family.widths) are not right: {error}"
        ) from error
    return HFCheckpoint(family.to_hf(student, config), config)


def save(student: HFCheckpoint, teacher_dir: str | Path, out_dir: str | Path) -> Path:
    """Writes the student with the teacher's tokenizer files, where it has any; the folder."""
    has_tokenizer = any((Path(teacher_dir) / name).is_file() for name in TOKENIZER_FILES)
    tokenizer_dir = teacher_dir if has_tokenizer else None
    return save_hf_folder(out_dir, student.state_dict, student.config, tokenizer_dir)


def _pruned_weights(
    weights: Mapping[str, Tensor], plan: Plan, widths: Widths | None
) -> dict[str, Tensor]:
    """The kept part of each tensor, under torchtune's names."""
    position = {layer: new for new, layer in enumerate(plan.depth.layers)}
    kept = {}
    for name, tensor in weights.items():
        match = _LAYER.match(name)
        layer, inside = (int(match[1]), match[2]) if match else (-1, name)
        if layer >= 0 and layer not in position:
            continue
        if widths is not None:
            tensor = _narrowed(tensor, widths.tensors.get(inside, ()), layer, plan)
            if inside in widths.norms:
                tensor = tensor * plan.norm_scales.get(name.rpartition(".")[0], 1.0)
        kept[f"layers.{position[layer]}.{inside}" if layer >= 0 else name] = tensor
    return kept


def _narrowed(
    tensor: Tensor, dimensions: tuple[Unit | None, ...], layer: int, plan: Plan
) -> Tensor:
    for dimension, unit in enumerate(dimensions):
        index = None if unit is None else plan.indices(unit, layer)
        if index is None:
            continue
        if unit in (Unit.HEAD, Unit.KV_HEAD):
            size = plan.teacher.head_dim
            index = (index[:, None] * size + torch.arange(size)).flatten()
        tensor = tensor.index_select(dimension, index)
    return tensor


def _pruned_config(config: Mapping[str, Any], plan: Plan, family: Family) -> dict[str, Any]:
    layers, widths = plan.depth.layers, family.widths
    out = {**config, family.layers_key: len(layers)}
    if isinstance(config.get("layer_types"), list):
        out["layer_types"] = [config["layer_types"][i] for i in layers]
    if not plan.kept or widths is None:
        return out
    out |= {key: plan.student.of(unit) for unit, key in widths.keys.items()}
    if widths.head_dim_key is not None:
        out[widths.head_dim_key] = plan.student.head_dim
    if widths.eps_key is not None and widths.eps_key in config:
        # the mean over fewer channels is larger by this: so the norm stays exact
        out[widths.eps_key] = config[widths.eps_key] * plan.teacher.width / plan.student.width
    return out
