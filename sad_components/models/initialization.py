"""Random initialisation that depends on a seed alone, not on device or dtype."""

from __future__ import annotations

import math

import torch
from torch import nn

#: Matrices whose output is added to the residual stream, in torchtune's names.
_RESIDUAL_WRITERS = ("attn.output_proj.weight", "mlp.w2.weight")


@torch.no_grad()
def init_weights(model: nn.Module, seed: int | None = None, std: float | None = 0.02) -> nn.Module:
    """``model`` with matrices drawn from N(0, std), norm scales one, biases zero; in place.

    The numbers are drawn on the CPU in fp32 and then cast, so that one seed gives one model on
    every device and in every dtype. torch's own default, N(0, 1) for an embedding, makes the
    logits of a model with tied embeddings start at a scale of sqrt(dim).

    Args:
        model: any decoder; parameters on the meta device are left alone.
        seed: seed of a generator of its own; ``None`` draws from torch's global one.
        std: standard deviation of the normal distribution, > 0. ``None`` takes
            1 / sqrt(inputs) for each matrix, and that divided by sqrt(2 layers) for those that
            write to the residual stream. At a width of 2,500 that is the usual 0.02; narrower
            matrices start larger.

    Returns:
        The same ``model``.
    """
    generator = None if seed is None else torch.Generator(device="cpu").manual_seed(seed)
    writers = max(1, sum(name.endswith(_RESIDUAL_WRITERS) for name, _ in model.named_parameters()))
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            continue
        if parameter.dim() >= 2:
            noise = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
            spread = 1 / math.sqrt(parameter.shape[-1]) if std is None else std
            if std is None and name.endswith(_RESIDUAL_WRITERS):
                spread /= math.sqrt(writers)
            parameter.copy_(noise.normal_(0.0, spread, generator=generator))
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.fill_(1.0)
    return model
