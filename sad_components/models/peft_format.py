"""Adapters as PEFT stores them: what transformers and PEFT put on the base model.

A family's own conversion says where each row of a projection lies in Hugging Face's model: rows
are numbered, converted, and read off. So every family has adapters in this format, also where its
rows are in another order (Llama) or several projections are one tensor (GPT-2): adapters of the
parts then become one of their ranks' sum, block by block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchtune.modules import TransformerDecoder
from torchtune.modules.peft import DoRALinear, LoRALinear, get_adapter_params

from sad_components.models.checkpoint import save_adapter_folder
from sad_components.models.families import family_of_model, hf_config_of
from sad_components.models.lora import adapters_of, scaling_of

_PREFIX = "base_model.model."
_UP_TO_LAYER = re.compile(r"^.*\.\d+\.")


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter in PEFT's format.

    Args:
        config: content of ``adapter_config.json``, but for the base model.
        tensors: by PEFT's names.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class _Place:
    """Where rows of our projections lie in one of Hugging Face's.

    Args:
        name: of Hugging Face's module.
        turned: its weight is stored as (in, out).
        parts: of each of ours that has an adapter, its name, its rows, and where they lie.
        others: the same of those that have none.
    """

    name: str
    turned: bool
    parts: list[tuple[str, Tensor, Tensor]]
    others: list[tuple[str, Tensor, Tensor]]


def save_peft_adapter(model: TransformerDecoder, out_dir: str | Path, base: str | Path) -> Path:
    """Writes ``model``'s adapters as a folder that PEFT loads on top of ``base``; its path.

    Args:
        model: a decoder with adapters.
        out_dir: the folder to make or replace.
        base: folder of the base model in Hugging Face format, or its name on the hub.

    Raises:
        ValueError: as for :func:`peft_adapter`, or ``out_dir`` holds other things.
    """
    adapter = peft_adapter(model)
    config = {**adapter.config, "base_model_name_or_path": str(base)}
    return save_adapter_folder(out_dir, adapter.tensors, config)


@torch.no_grad()
def peft_adapter(model: TransformerDecoder) -> PeftAdapter:
    """The adapters of ``model`` in PEFT's format.

    Raises:
        ValueError: no adapters; a family without Hugging Face format, or whose conversion does
            more than move rows; adapters of one kind that differ in rank, scale or method.
    """
    adapters = adapters_of(model)
    if not adapters:
        raise ValueError(f"{type(model).__name__} has no adapters to write: save it as a model")
    modules = dict(model.named_modules())
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, tuple[int, float, bool]] = {}
    turned = False
    for place in _places(model):
        parts = [(adapters[name], rows, at) for name, rows, at in place.parts]
        first = parts[0][0]
        rank, use_dora = first.lora_a.out_features * len(parts), isinstance(first, DoRALinear)
        shape = (rank, scaling_of(first) * rank, use_dora)
        kind = _UP_TO_LAYER.sub("", place.name)
        if any(_shape_of(m) != _shape_of(first) for m, _, _ in parts) or (
            shapes.setdefault(kind, shape) != shape
        ):
            raise ValueError(f"adapters on {kind} must have one rank, alpha and method everywhere")
        turned |= place.turned
        others = [(modules[name].weight[rows], at) for name, rows, at in place.others]
        for key, tensor in _tensors(parts, others).items():
            tensors[f"{_PREFIX}{place.name}.{key}"] = tensor
    if len({use_dora for _, _, use_dora in shapes.values()}) > 1:
        raise ValueError("all adapters must be LoRA, or all DoRA: PEFT has one switch for both")
    dropout = next(iter(adapters.values())).dropout
    return PeftAdapter(_config(shapes, turned, getattr(dropout, "p", 0.0)), tensors)


def _config(
    shapes: Mapping[str, tuple[int, float, bool]], turned: bool, dropout: float
) -> dict[str, Any]:
    rank, alpha, use_dora = min(shapes.values())
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "bias": "none",
        "target_modules": sorted(shapes),
        "r": rank,
        "rank_pattern": {k: shape[0] for k, shape in shapes.items() if shape[0] != rank},
        "lora_alpha": alpha,
        "alpha_pattern": {k: shape[1] for k, shape in shapes.items() if shape[1] != alpha},
        "lora_dropout": dropout,
        "use_dora": use_dora,
        "fan_in_fan_out": turned,
    }


def _shape_of(module: nn.Module) -> tuple[int, float, type]:
    return module.lora_a.out_features, scaling_of(module), isinstance(module, DoRALinear)


def _tensors(
    parts: list[tuple[nn.Module, Tensor, Tensor]], others: list[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """PEFT's tensors of one module: A side by side, B block by block, DoRA's magnitudes."""
    first = parts[0][0].lora_b.weight
    rank = first.shape[1]
    rows = sum(len(at) for _, _, at in parts) + sum(len(at) for _, at in others)
    b = first.new_zeros(rows, rank * len(parts))
    magnitude = first.new_zeros(rows)
    for i, (module, own, at) in enumerate(parts):
        b[at, i * rank : (i + 1) * rank] = module.lora_b.weight[own]
        if isinstance(module, DoRALinear):
            magnitude[at] = module.magnitude[own]
    for weight, at in others:  # their magnitude is what leaves them as they are
        magnitude[at] = torch.linalg.norm(weight, dim=1).to(magnitude.dtype)
    tensors = {
        "lora_A.weight": torch.cat([module.lora_a.weight for module, _, _ in parts]),
        "lora_B.weight": b,
    }
    if isinstance(parts[0][0], DoRALinear):
        tensors["lora_magnitude_vector"] = magnitude
    return tensors


def _places(model: TransformerDecoder) -> list[_Place]:
    """Hugging Face's modules that hold rows of an adapted projection."""
    adapters = adapters_of(model)
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | LoRALinear | DoRALinear)
        and name.rpartition(".")[0] not in adapters
    }
    names = list(linears)
    sizes = torch.tensor([module.weight.shape[0] for module in linears.values()])
    starts = sizes.cumsum(0) - sizes
    probe = {
        name: torch.empty(parameter.shape, device="meta")
        for name, parameter in model.named_parameters()
        if name not in get_adapter_params(model)
    }
    for name, start, size in zip(names, starts.tolist(), sizes.tolist()):
        probe[f"{name}.weight"] = torch.arange(start, start + size)[:, None]
    places: list[_Place] = []
    found: set[tuple[str, int]] = set()
    for key, tensor in family_of_model(model).to_hf(probe, hf_config_of(model)).items():
        if tensor.is_meta:
            continue
        rows, name = tensor.flatten(), key.removesuffix(".weight")
        source = torch.searchsorted(starts, rows, right=True) - 1
        inside = [
            (names[i], (rows - starts[i])[source == i], (source == i).nonzero().squeeze(1))
            for i in source.unique().tolist()
        ]
        parts = [part for part in inside if part[0] in adapters]
        found |= {(part, row) for part, own, _ in parts for row in own.tolist()}
        if parts:
            others = [part for part in inside if part[0] not in adapters]
            places.append(_Place(name, tensor.shape[1] != 1, parts, others))
    if len(found) != sum(module.weight.shape[0] for module in adapters.values()):
        raise ValueError(
            f"the conversion of family {family_of_model(model).model_type!r} must move the rows of "
            "projections and change nothing else, for adapters in PEFT's format: keep the merged "
            "student, or train all weights"
        )
    return places
