"""A live teacher in less memory: bf16, or its linear weights in FP8, int8 or NF4."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
from torchtune import training
from torchtune.modules import TransformerDecoder

from sad_components.models.linear_layers import linear_layers
from sad_components.models.lora import nf4_weight
from sad_components.training.config import ConfigError, build, is_null
from sad_components.training.memory import stored_bytes
from sad_components.training.meta_models import on_meta

_QUANTIZED = ("fp8", "int8", "nf4")
PRECISIONS = ("bf16", *_QUANTIZED)


def build_teacher(
    node: DictConfig | None, precision: str | None, dtype: torch.dtype, device: torch.device
) -> tuple[Any, list[str]]:
    """The config's teacher in the precision asked for, and what to say about it.

    Only linear weights are quantised; head, embedding, norms and all products stay in ``dtype``.
    The model is loaded in the CPU's memory and goes to the device layer by layer, quantised.

    Args:
        node: of the teacher; may be null.
        precision: None, ``bf16``, ``fp8``, ``int8`` or ``nf4``.
        dtype: of the run.
        device: of the run.

    Raises:
        ConfigError: another precision; one for no teacher, for one that is no model (a cache), or
            that the device cannot run.
    """
    if precision is None:
        with training.set_default_dtype(dtype), device:
            return build(node, "teacher"), []
    _check(precision, node, dtype, device)
    if precision == "bf16":
        with training.set_default_dtype(torch.bfloat16), device:
            teacher = build(node, "teacher")
        return _checked_model(teacher, precision), ["teacher: bf16"]
    with training.set_default_dtype(dtype), torch.device("cpu"):
        teacher = _checked_model(build(node, "teacher"), precision)
    before, layers = _linear_bytes(teacher), len(linear_layers(teacher))
    quantize_teacher_(teacher, precision, device)
    line = (
        f"teacher: {layers} linear layers in {precision}, {_linear_bytes(teacher) / 1e6:.1f} MB "
        f"instead of {before / 1e6:.1f}"
    )
    return teacher.to(device), [line]


def teacher_on_meta(
    node: DictConfig | None, precision: str | None, dtype: torch.dtype
) -> TransformerDecoder | None:
    """As :func:`~sad_components.training.meta_models.on_meta`, in the teacher's precision.

    Args: as for :func:`build_teacher`; another precision is taken for None.
    """
    model = on_meta(node, "teacher", torch.bfloat16 if precision == "bf16" else dtype)
    if model is not None and precision in _QUANTIZED:
        quantize_teacher_(model, precision, torch.device("meta"))
    return model


def quantize_teacher_(model: nn.Module, precision: str, device: torch.device) -> nn.Module:
    """``model`` with linear weights (but the head's) in ``precision``, in place, frozen.

    Args:
        model: a torchtune decoder in fp32 or bf16.
        precision: ``fp8``, ``int8`` or ``nf4``.
        device: where each weight is quantised and stays.

    Raises:
        ValueError: a weight that NF4 cannot hold.
    """
    layers = linear_layers(model)
    model.requires_grad_(False)
    if precision == "nf4":
        for name, layer in layers.items():
            weight = layer.weight.detach().to(device)
            if weight.numel() % 64:
                raise ValueError(
                    f"NF4 holds weights whose number is a multiple of 64; {name} has "
                    f"{list(weight.shape)}: use teacher_precision: int8"
                )
            layer.weight = nn.Parameter(nf4_weight(weight), requires_grad=False)
        return model
    with warnings.catch_warnings():
        # int8 of version 1 is deprecated, but version 2 is ten times less exact in bf16
        warnings.filterwarnings("ignore", "Config Deprecation: version 1 of Int8WeightOnlyConfig")
        config = (
            Int8WeightOnlyConfig(version=1) if precision == "int8" else Float8WeightOnlyConfig()
        )
        quantize_(model, config, filter_fn=lambda _, name: name in layers, device=device)
    return model


def _check(
    precision: str, node: DictConfig | None, dtype: torch.dtype, device: torch.device
) -> None:
    if precision not in PRECISIONS:
        raise ConfigError(f"teacher_precision is null, {', '.join(PRECISIONS)}; got {precision!r}")
    if is_null(node):
        raise ConfigError(
            f"teacher_precision: {precision} is for a teacher, but teacher is null; name one, or "
            "set teacher_precision: null"
        )
    if precision != "bf16" and dtype not in (torch.float32, torch.bfloat16):
        raise ConfigError(
            f"teacher_precision: {precision} multiplies in fp32 or bf16; the run's dtype is "
            f"{str(dtype).removeprefix('torch.')}: set dtype: fp32, or teacher_precision: null"
        )
    try:
        _try(precision, dtype, device)
    except Exception as error:  # what a device lacks shows in as many ways as there are kernels
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"teacher_precision: {precision} does not run on {device} here ({reason:.200}); use "
            "another of null, " + ", ".join(p for p in PRECISIONS if p != precision)
        ) from error


def _try(precision: str, dtype: torch.dtype, device: torch.device) -> None:
    """One product of a small quantised layer."""
    dtype = torch.bfloat16 if precision == "bf16" else dtype
    layer = nn.Sequential(nn.Linear(64, 64, bias=False, dtype=dtype, device=device))
    if precision != "bf16":
        quantize_teacher_(layer, precision, device)
    with torch.no_grad():
        layer(torch.zeros(3, 64, dtype=dtype, device=device))


def _checked_model(teacher: Any, precision: str) -> nn.Module:
    if not isinstance(teacher, nn.Module):
        raise ConfigError(
            f"teacher_precision: {precision} is of a model that runs live; "
            f"{type(teacher).__name__} reads what one has said: set teacher_precision: null"
        )
    return teacher


def _linear_bytes(model: nn.Module) -> int:
    """Bytes of the linear layers' weights, with their scales."""
    return sum(stored_bytes(layer.weight) for layer in linear_layers(model).values())
