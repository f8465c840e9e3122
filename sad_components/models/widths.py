"""Along which dimensions a family's tensors can be made narrower, and what the config calls them.

The units that can be taken away: query heads, the key/value heads they share, neurons of the MLPs
and channels of the residual stream. Each family names, for every tensor, the units that its
dimensions count; pruning (``sad_components.pruning``) needs nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Unit(StrEnum):
    """What a dimension of a tensor consists of."""

    HEAD = "heads"
    KV_HEAD = "kv_heads"
    NEURON = "ffn"
    CHANNEL = "width"


#: The units of a tensor's dimensions; None for a dimension that stays.
Dimensions = tuple[Unit | None, ...]


@dataclass(frozen=True, slots=True)
class Widths:
    """What can be taken away from a family's tensors. Names are torchtune's.

    Args:
        keys: the config's name for the number of each unit that can be taken away.
        tensors: dimensions of every tensor that has such a unit, by name; a tensor of a block by
            its name inside the block. A dimension of heads counts ``head_dim`` rows for each.
        norms: those among them whose scale has to make up for missing channels: RMSNorms, which
            divide by a mean over all channels.
        head_dim_key: the config's name for the width of a head; None where it is always
            channels / heads, so that both have to shrink together.
        eps_key: the config's name for the epsilon of ``norms``; None without them.
    """

    keys: Mapping[Unit, str]
    tensors: Mapping[str, Dimensions]
    norms: tuple[str, ...] = ()
    head_dim_key: str | None = None
    eps_key: str | None = None


_LLAMA_KEYS = {
    Unit.HEAD: "num_attention_heads",
    Unit.KV_HEAD: "num_key_value_heads",
    Unit.NEURON: "intermediate_size",
    Unit.CHANNEL: "hidden_size",
}
_LLAMA_NORMS = ("sa_norm.scale", "mlp_norm.scale", "norm.scale")
_LLAMA_TENSORS: dict[str, Dimensions] = {
    "tok_embeddings.weight": (None, Unit.CHANNEL),
    "output.weight": (None, Unit.CHANNEL),
    "attn.q_proj.weight": (Unit.HEAD, Unit.CHANNEL),
    "attn.k_proj.weight": (Unit.KV_HEAD, Unit.CHANNEL),
    "attn.v_proj.weight": (Unit.KV_HEAD, Unit.CHANNEL),
    "attn.output_proj.weight": (Unit.CHANNEL, Unit.HEAD),
    "mlp.w1.weight": (Unit.NEURON, Unit.CHANNEL),
    "mlp.w2.weight": (Unit.CHANNEL, Unit.NEURON),
    "mlp.w3.weight": (Unit.NEURON, Unit.CHANNEL),
    **dict.fromkeys(_LLAMA_NORMS, (Unit.CHANNEL,)),
}
_MLP_WITH_BIAS: dict[str, Dimensions] = {
    "mlp.w1.weight": (Unit.NEURON, None),
    "mlp.w1.bias": (Unit.NEURON,),
    "mlp.w2.weight": (None, Unit.NEURON),
}

#: Llama, Mistral and Qwen3 (whose norms inside a head do not change).
LLAMA_WIDTHS = Widths(
    keys=_LLAMA_KEYS,
    tensors=_LLAMA_TENSORS,
    norms=_LLAMA_NORMS,
    head_dim_key="head_dim",
    eps_key="rms_norm_eps",
)
QWEN2_WIDTHS = Widths(
    keys=_LLAMA_KEYS,
    tensors={
        **_LLAMA_TENSORS,
        "attn.q_proj.bias": (Unit.HEAD,),
        "attn.k_proj.bias": (Unit.KV_HEAD,),
        "attn.v_proj.bias": (Unit.KV_HEAD,),
    },
    norms=_LLAMA_NORMS,
    eps_key="rms_norm_eps",
)
#: A LayerNorm also subtracts a mean over channels, and heads share the width: neurons only.
GPT2_WIDTHS = Widths(keys={Unit.NEURON: "n_inner"}, tensors=_MLP_WITH_BIAS)
OPT_WIDTHS = Widths(keys={Unit.NEURON: "ffn_dim"}, tensors=_MLP_WITH_BIAS)
