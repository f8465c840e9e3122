"""Names of a family's tensors, between Hugging Face's and torchtune's, one to one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

#: How torchtune names a block.
TUNE_LAYERS = "layers."
_ROTARY_BUFFER = "rotary_emb.inv_freq"
#: The part of a Hugging Face llama's names that nearly all later families share.
LLAMA_OUTSIDE = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.scale",
    "lm_head.weight": "output.weight",
}
LLAMA_INSIDE = {
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


class Renaming:
    """Both directions of a one-to-one renaming.

    Args:
        family: named in messages.
        outside: Hugging Face name -> torchtune name, of the tensors outside blocks.
        inside: the same inside a block, without the block's own name.
        layers: how Hugging Face names a block, up to its number.
    """

    def __init__(
        self,
        family: str,
        outside: Mapping[str, str],
        inside: Mapping[str, str],
        layers: str = "model.layers.",
    ) -> None:
        self._family, self._layers = family, layers
        self._outside, self._inside = dict(outside), dict(inside)

    def hf_to_tune(
        self, state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> dict[str, torch.Tensor]:
        """State dict of the torchtune decoder, from that of the Hugging Face model.

        Rotary buffers that old checkpoints hold are left out, and a head that is the embedding.

        Args:
            state_dict: tensors by Hugging Face name.
            config: content of its ``config.json``.

        Raises:
            ValueError: a tensor that the family does not have.
        """
        dropped = [_ROTARY_BUFFER]
        if config.get("tie_word_embeddings", False):
            dropped.append("lm_head.weight")
        return self.to_tune({k: v for k, v in state_dict.items() if not k.endswith(tuple(dropped))})

    def tune_to_hf(
        self, state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> dict[str, torch.Tensor]:
        """State dict of the Hugging Face model, from that of the torchtune decoder; the inverse.

        Args and Raises: as for :meth:`hf_to_tune`, with torchtune's names.
        """
        return self.to_hf(state_dict)

    def to_tune(self, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The same tensors under torchtune's names.

        Raises:
            ValueError: a tensor that the family does not have.
        """
        return self._rename(
            state_dict, self._outside, self._inside, source=self._layers, target=TUNE_LAYERS
        )

    def to_hf(self, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The same tensors under Hugging Face's names.

        Raises:
            ValueError: a tensor that the family does not have.
        """
        outside = {v: k for k, v in self._outside.items()}
        inside = {v: k for k, v in self._inside.items()}
        return self._rename(state_dict, outside, inside, source=TUNE_LAYERS, target=self._layers)

    def _rename(
        self,
        state_dict: Mapping[str, torch.Tensor],
        outside: Mapping[str, str],
        inside: Mapping[str, str],
        *,
        source: str,
        target: str,
    ) -> dict[str, torch.Tensor]:
        in_layer = re.compile(rf"^{re.escape(source)}(\d+)\.(.+)$")
        renamed = {}
        for name, tensor in state_dict.items():
            match = in_layer.match(name)
            if match and match[2] in inside:
                renamed[f"{target}{match[1]}.{inside[match[2]]}"] = tensor
            elif name in outside:
                renamed[outside[name]] = tensor
            else:
                raise ValueError(
                    f"tensor {name!r} is not part of the {self._family} architecture; the "
                    "checkpoint belongs to another family or holds adapters: merge those first"
                )
        return renamed
