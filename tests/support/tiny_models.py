"""Tiny decoders for tests of precision: every dimension a multiple of 16."""

from __future__ import annotations

from typing import Any

import torch
from torchtune.modules import TransformerDecoder

from sad_components.models import from_scratch

LLAMA = {
    **{"model_type": "llama", "vocab_size": 61, "hidden_size": 64, "intermediate_size": 96},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"max_position_embeddings": 64, "tie_word_embeddings": False},
}
TOKENS = torch.arange(40).view(2, 20)


def tiny_llama(dtype: str = "fp32", **config: Any) -> TransformerDecoder:
    """A decoder with an output head of its own."""
    return from_scratch({**LLAMA, **config}, seed=3, dtype=dtype)


@torch.no_grad()
def logits(model: TransformerDecoder) -> torch.Tensor:
    return model.eval()(TOKENS).float()


def gradients(model: TransformerDecoder) -> dict[str, torch.Tensor]:
    """Of a loss that weighs every logit differently."""
    model.train().zero_grad()
    out = model(TOKENS).float()
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Norm of the difference, relative to ``b``."""
    return float((a - b).norm() / b.norm())
