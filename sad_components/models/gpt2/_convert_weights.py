"""Weights between Hugging Face's ``GPT2LMHeadModel`` and torchtune, both ways.

Hugging Face stores GPT-2's projections as ``(in, out)`` and the three of the attention side by
side; here each is a matrix of its own, ``(out, in)``. Numbers do not change: a round trip is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sad_components.models.renaming import Renaming

_PROJECTIONS = {
    "attn.q_proj": "attn.q_proj",
    "attn.k_proj": "attn.k_proj",
    "attn.v_proj": "attn.v_proj",
    "attn.c_proj": "attn.output_proj",
    "mlp.c_fc": "mlp.w1",
    "mlp.c_proj": "mlp.w2",
}
_NORMS = {"ln_1": "sa_norm", "ln_2": "mlp_norm"}
_NAMES = Renaming(
    "gpt2",
    outside={
        "wte.weight": "tok_embeddings.weight",
        "wpe.weight": "positions.weight",
        "ln_f.weight": "norm.weight",
        "ln_f.bias": "norm.bias",
        "lm_head.weight": "output.weight",
    },
    inside={
        f"{hf}.{kind}": f"{tune}.{kind}"
        for hf, tune in {**_PROJECTIONS, **_NORMS}.items()
        for kind in ("weight", "bias")
    },
    layers="h.",
)
_FUSED = "attn.c_attn."
_QKV = ("attn.q_proj.", "attn.k_proj.", "attn.v_proj.")
_TRANSPOSED = tuple(f".{tune}.weight" for tune in _PROJECTIONS.values())
_PREFIX = "transformer."
#: Causal masks that old checkpoints hold as tensors.
_BUFFERS = (".attn.bias", ".attn.masked_bias")


def gpt2_hf_to_tune(
    state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """State dict of the torchtune decoder, from that of ``GPT2LMHeadModel``.

    Args:
        state_dict: tensors by Hugging Face name, with or without ``transformer.`` in front (the
            published files have none).
        config: content of its ``config.json``.

    Raises:
        ValueError: a tensor that this architecture does not have.
    """
    split = {}
    for full_name, tensor in state_dict.items():
        name = full_name.removeprefix(_PREFIX)
        if name.endswith(_BUFFERS) or (name == "lm_head.weight" and _tied(config)):
            continue
        if _FUSED in name:
            parts = tensor.chunk(3, dim=-1)
            split |= {name.replace(_FUSED, part): t for part, t in zip(_QKV, parts)}
        else:
            split[name] = tensor
    return {name: _turned(name, tensor) for name, tensor in _NAMES.to_tune(split).items()}


def gpt2_tune_to_hf(
    state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """State dict of ``GPT2LMHeadModel``, from that of the torchtune decoder; the inverse.

    Args:
        state_dict: tensors by torchtune name.
        config: content of its ``config.json``.

    Raises:
        ValueError: a tensor that this architecture does not have, or one missing of three.
    """
    parts = _NAMES.to_hf({name: _turned(name, tensor) for name, tensor in state_dict.items()})
    fused = {}
    for name, tensor in parts.items():
        if _QKV[0] in name:
            fused[name.replace(_QKV[0], _FUSED)] = torch.cat(
                [_part(parts, name.replace(_QKV[0], part)) for part in _QKV], dim=-1
            )
        elif not any(part in name for part in _QKV):
            fused[name] = tensor
    return {k if k == "lm_head.weight" else _PREFIX + k: v for k, v in fused.items()}


def _turned(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.T.contiguous() if name.endswith(_TRANSPOSED) else tensor


def _part(parts: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    if name not in parts:
        raise ValueError(
            f"GPT-2 stores queries, keys and values as one tensor; {name!r} is missing"
        )
    return parts[name]


def _tied(config: Mapping[str, Any]) -> bool:
    return config.get("tie_word_embeddings", True)
