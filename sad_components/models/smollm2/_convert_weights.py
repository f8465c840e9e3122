"""Weights of SmolLM2 between Hugging Face's ``LlamaForCausalLM`` and torchtune, both ways.

Both store the same numbers under different names, and the rows of the query and key projections
in a different order: Hugging Face rotates element ``i`` of a head together with element
``i + head_dim / 2``, torchtune element ``2 i`` together with ``2 i + 1``. Within each head,
therefore, rows ``(0, d/2, 1, d/2 + 1, ..)`` of the first are rows ``(0, 1, 2, 3, ..)`` of the
second. Names and row order are all that changes, so a round trip is exact.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch

_OUTSIDE_LAYERS = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.scale",
    "lm_head.weight": "output.weight",
}
_INSIDE_LAYER = {
    "input_layernorm.weight": "sa_norm.scale",
    "self_attn.q_proj.weight": "attn.q_proj.weight",
    "self_attn.k_proj.weight": "attn.k_proj.weight",
    "self_attn.v_proj.weight": "attn.v_proj.weight",
    "self_attn.o_proj.weight": "attn.output_proj.weight",
    "post_attention_layernorm.weight": "mlp_norm.scale",
    "mlp.gate_proj.weight": "mlp.w1.weight",
    "mlp.down_proj.weight": "mlp.w2.weight",
    "mlp.up_proj.weight": "mlp.w3.weight",
}
_LAYER_NAME = re.compile(r"^((?:model\.)?layers\.)(\d+)\.(.+)$")


def smollm2_hf_to_tune(
    state_dict: Mapping[str, torch.Tensor],
    num_heads: int,
    num_kv_heads: int,
    tie_word_embeddings: bool = True,
) -> dict[str, torch.Tensor]:
    """State dict of the torchtune decoder, from that of ``LlamaForCausalLM``.

    Args:
        state_dict: tensors by Hugging Face name; each ``(out, in)`` or ``(dim,)``.
        num_heads: query heads.
        num_kv_heads: key/value heads.
        tie_word_embeddings: drop ``lm_head.weight``: the head is the embedding.

    Raises:
        ValueError: a tensor that this architecture does not have.
    """
    names = {k: v for k, v in state_dict.items() if not k.endswith("rotary_emb.inv_freq")}
    if tie_word_embeddings:
        names.pop("lm_head.weight", None)
    heads = {"attn.q_proj.weight": num_heads, "attn.k_proj.weight": num_kv_heads}
    return _convert(names, _OUTSIDE_LAYERS, _INSIDE_LAYER, "layers.", heads, _to_interleaved)


def smollm2_tune_to_hf(
    state_dict: Mapping[str, torch.Tensor], num_heads: int, num_kv_heads: int
) -> dict[str, torch.Tensor]:
    """State dict of ``LlamaForCausalLM``, from that of the torchtune decoder; the inverse.

    Args:
        state_dict: tensors by torchtune name; each ``(out, in)`` or ``(dim,)``.
        num_heads: query heads.
        num_kv_heads: key/value heads.

    Raises:
        ValueError: a tensor that this architecture does not have.
    """
    outside = {v: k for k, v in _OUTSIDE_LAYERS.items()}
    inside = {v: k for k, v in _INSIDE_LAYER.items()}
    heads = {"self_attn.q_proj.weight": num_heads, "self_attn.k_proj.weight": num_kv_heads}
    return _convert(state_dict, outside, inside, "model.layers.", heads, _to_halves)


def _convert(
    state_dict: Mapping[str, torch.Tensor],
    outside: Mapping[str, str],
    inside: Mapping[str, str],
    prefix: str,
    heads: Mapping[str, int],
    reorder: Callable[[torch.Tensor, int], torch.Tensor],
) -> dict[str, torch.Tensor]:
    converted = {}
    for name, tensor in state_dict.items():
        in_layer = _LAYER_NAME.match(name)
        if in_layer and in_layer[3] in inside:
            suffix = inside[in_layer[3]]
            num_heads = heads.get(suffix)
            new_name = f"{prefix}{in_layer[2]}.{suffix}"
            converted[new_name] = tensor if num_heads is None else reorder(tensor, num_heads)
        elif name in outside:
            converted[outside[name]] = tensor
        else:
            raise ValueError(
                f"tensor {name!r} is not part of the SmolLM2 (llama without biases) architecture; "
                "the checkpoint belongs to another family or holds adapters: merge those first"
            )
    return converted


def _to_interleaved(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    out_dim, in_dim = weight.shape
    halves = weight.reshape(num_heads, 2, out_dim // num_heads // 2, in_dim)
    return halves.transpose(1, 2).reshape(out_dim, in_dim)


def _to_halves(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    out_dim, in_dim = weight.shape
    pairs = weight.reshape(num_heads, out_dim // num_heads // 2, 2, in_dim)
    return pairs.transpose(1, 2).reshape(out_dim, in_dim)
