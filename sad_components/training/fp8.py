"""Training in FP8: the student's linear layers multiply in 8 bits, their weights stay wide."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchao.float8 import Float8LinearConfig
from torchao.float8.float8_linear import Float8Linear
from torchao.float8.float8_linear_utils import swap_linear_layers

from sad_components.models.linear_layers import check_no_adapters, linear_layers

RECIPES = ("tensorwise", "rowwise")
#: What FP8 products on a GPU want of both dimensions of a weight.
_MULTIPLE = 16
#: CUDA compute capability from which a GPU has the product.
_CAPABILITY = {"tensorwise": (8, 9), "rowwise": (9, 0)}


class _Linear(Float8Linear):
    """torchao's layer, which has no scale for an input without tokens: that one is not scaled."""

    def forward(self, input: Tensor) -> Tensor:
        if input.numel() == 0:
            return F.linear(input, self.weight, self.bias)
        return super().forward(input)


def use_fp8_(model: nn.Module, recipe: str, device: torch.device) -> list[str]:
    """Linear layers of ``model``, in place, that multiply in FP8 forwards and backwards.

    Parameters stay what they were, and their names. The output head is left out, and layers with
    a dimension that is no multiple of 16. Where the device has no FP8 product it is emulated:
    values are rounded to FP8, and multiplied in fp32.

    Args:
        model: a torchtune decoder without adapters.
        recipe: ``tensorwise`` (one scale a tensor) or ``rowwise`` (one a row).
        device: where the model runs.

    Returns:
        Lines for people: real or emulated, how many layers, which were left out.

    Raises:
        ValueError: another recipe, adapters, no layer that FP8 is for, or a device whose FP8
            products do not run in the model's dtype.
    """
    if recipe not in RECIPES:
        raise ValueError(f"fp8 is null, {' or '.join(RECIPES)}; got {recipe!r}")
    check_no_adapters(model, "fp8")
    layers = linear_layers(model)
    odd = [name for name, layer in layers.items() if not _fits(layer)]
    if len(odd) == len(layers):
        raise ValueError(
            f"fp8 multiplies weights whose dimensions are multiples of {_MULTIPLE}; none of this "
            f"model's {len(layers)} linear layers is such: set fp8: null"
        )
    emulated = not has_fp8(device, recipe)
    config = replace(
        Float8LinearConfig.from_recipe_name(recipe),
        emulate=emulated,
        pad_inner_dim=True,  # a weight's gradient sums over tokens, of which there are any number
    )
    chosen = set(layers) - set(odd)
    if not emulated:
        _try(config, recipe, device, next(model.parameters()).dtype)
    swap_linear_layers(
        model,
        lambda layer: _Linear.from_float(layer, config=config),
        module_filter_fn=lambda _, name: name in chosen,
    )
    how = f"emulated ({device} has no FP8 product)" if emulated else "real"
    lines = [f"fp8: {recipe}, {how}, {len(chosen)} linear layers; the output head stays as it is"]
    if odd:
        lines.append(
            f"fp8: {len(odd)} left out, with a dimension that is no multiple of {_MULTIPLE} "
            f"({odd[0]}: {list(layers[odd[0]].weight.shape)})"
        )
    return lines


def _try(config: Float8LinearConfig, recipe: str, device: torch.device, dtype: torch.dtype) -> None:
    """One small layer there and back: some kernels know fewer dtypes than the emulation."""
    layer = nn.Linear(_MULTIPLE, 2 * _MULTIPLE, bias=False, dtype=dtype, device=device)
    hidden = torch.ones(3, _MULTIPLE, dtype=dtype, device=device)
    try:
        _Linear.from_float(layer, config=config)(hidden).sum().backward()
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"fp8: {recipe} does not run on {device} with parameters in "
            f"{str(dtype).removeprefix('torch.')} ({reason:.200}); use dtype: bf16, or fp8: null"
        ) from error


def has_fp8(device: torch.device, recipe: str) -> bool:
    """Whether the device multiplies in FP8 as ``recipe`` needs it."""
    if device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) >= _CAPABILITY[recipe]


def _fits(layer: nn.Linear) -> bool:
    return not any(size % _MULTIPLE for size in layer.weight.shape)
