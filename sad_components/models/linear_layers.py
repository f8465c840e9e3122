"""The linear layers of a decoder that low precision is for: all but the output head."""

from __future__ import annotations

from torch import nn
from torchtune.modules.peft import get_adapter_params


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Every ``nn.Linear`` by name, without the output head: losses read that one's weights.

    Args:
        model: a torchtune decoder.
    """
    head = getattr(model, "output", None)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def check_no_adapters(model: nn.Module, what: str) -> None:
    """Raises ``ValueError`` for a model with LoRA or DoRA adapters.

    Args:
        model: any.
        what: the switch that cannot have them, for the message.
    """
    adapters = get_adapter_params(model)
    if adapters:
        raise ValueError(
            f"{what} replaces plain linear layers, but this student has {len(adapters)} adapter "
            "parameters, whose frozen base weights it would not reach: take a student without "
            f"adapters, or leave out {what} (quantize_base: true holds the base in NF4)"
        )
