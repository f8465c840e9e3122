"""Low-rank adapters (LoRA, DoRA, QLoRA) on any decoder, with torchtune's modules and names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from torchao.dtypes.nf4tensor import linear_nf4, to_nf4
from torchtune.modules import TiedLinear, TransformerDecoder
from torchtune.modules.common_utils import reparametrize_as_dtype_state_dict_post_hook
from torchtune.modules.peft import DoRALinear, LoRALinear

Builder = Callable[..., TransformerDecoder]

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "output_proj")
_MLP_PROJECTIONS = ("w1", "w2", "w3")
#: NF4 stores 64 weights with one scale, and 256 of these scales, where they divide, with another.
_BLOCK, _SCALES = 64, 256


def add_lora_(
    model: TransformerDecoder,
    lora_attn_modules: Sequence[str],
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    lora_rank: int = 8,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
    use_dora: bool = False,
    quantize_base: bool = False,
) -> TransformerDecoder:
    """``model`` with adapters on some projections, in place; it computes what it did before.

    The weights of those projections stay (as NF4, with ``quantize_base``: then it computes nearly
    what it did before, and ``state_dict`` gives them back in the model's dtype). Which parameters
    are trained is the caller's to say: ``torchtune.modules.peft.get_adapter_params``.

    Args:
        model: a decoder with plain linear projections.
        lora_attn_modules: some of ``q_proj``, ``k_proj``, ``v_proj``, ``output_proj``.
        apply_lora_to_mlp: adapters on every projection of the MLPs.
        apply_lora_to_output: an adapter on the output head.
        lora_rank: of the adapters, >= 1.
        lora_alpha: their output is scaled by ``lora_alpha / lora_rank``.
        lora_dropout: on their input, in [0, 1].
        use_dora: weights decomposed into magnitude and direction.
        quantize_base: NF4 for the weights that get an adapter.

    Raises:
        ValueError: no or unknown attention modules; an output that is tied to the embedding; a
            projection that is not plain; or one that NF4 cannot hold.
    """
    unknown = sorted(set(lora_attn_modules) - set(ATTENTION_PROJECTIONS))
    if not lora_attn_modules or unknown:
        raise ValueError(
            f"lora_attn_modules must name some of {', '.join(ATTENTION_PROJECTIONS)}; "
            f"got {list(lora_attn_modules)}"
        )
    if apply_lora_to_output and isinstance(model.output, TiedLinear):
        raise ValueError(
            "apply_lora_to_output needs an output of its own; this model's is its embedding"
        )
    adapted = partial(
        _adapted,
        rank=lora_rank,
        alpha=lora_alpha,
        dropout=lora_dropout,
        use_dora=use_dora,
        quantize_base=quantize_base,
    )
    for layer in model.layers:
        for name in lora_attn_modules:
            setattr(layer.attn, name, adapted(getattr(layer.attn, name)))
        for name in _MLP_PROJECTIONS if apply_lora_to_mlp else ():
            if getattr(layer.mlp, name) is not None:
                setattr(layer.mlp, name, adapted(getattr(layer.mlp, name)))
    if apply_lora_to_output:
        model.output = adapted(model.output, quantize_base=False)  # as torchtune does
    if quantize_base:
        dtype = model.tok_embeddings.weight.dtype
        model._register_state_dict_hook(
            partial(reparametrize_as_dtype_state_dict_post_hook, dtype=dtype)
        )
    return model


def lora_version(builder: Builder, kind: Literal["lora", "qlora"] = "lora") -> Builder:
    """The builder ``lora_..`` (or ``qlora_..``, with NF4 weights) of a builder of decoders.

    Args:
        builder: makes a decoder; all its arguments can be given by name.
        kind: ``qlora`` makes ``quantize_base`` true by default.

    Returns:
        A function that takes the arguments of :func:`add_lora_` first, as torchtune's builders
        do, and the builder's own by name.
    """
    own = [
        p.replace(default=True) if (p.name, kind) == ("quantize_base", "qlora") else p
        for p in list(inspect.signature(add_lora_).parameters.values())[1:]
    ]
    of_model = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for p in inspect.signature(builder).parameters.values()
    ]
    signature = inspect.Signature([*own, *of_model], return_annotation=TransformerDecoder)
    names = {p.name for p in own}

    def build(*args: Any, **kwargs: Any) -> TransformerDecoder:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        model = builder(**{k: v for k, v in given.items() if k not in names})
        return add_lora_(model, **{k: v for k, v in given.items() if k in names})

    build.__signature__ = signature  # type: ignore[attr-defined]
    build.__name__ = build.__qualname__ = f"{kind}_{builder.__name__}"
    build.__module__ = builder.__module__
    build.__doc__ = (
        f":func:`{builder.__name__}` with adapters: the arguments of "
        ":func:`sad_components.models.lora.add_lora_`, then its own by name."
    )
    return build


def lora_versions(builder: Builder) -> tuple[Builder, Builder]:
    """The builders ``lora_..`` and ``qlora_..`` of a builder; see :func:`lora_version`."""
    return lora_version(builder), lora_version(builder, "qlora")


class DoRALinearWithBias(DoRALinear):
    """torchtune's ``DoRALinear`` with the bias left as it is.

    torchtune scales the bias together with the product, so that weights merged by
    ``get_merged_lora_ckpt`` are another model than the one that was trained.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``m / ||W + s B A|| * (W + s B A) x + bias``, shape [.., in] to [.., out]."""
        plain = linear_nf4(x, self.weight) if self._quantize_base else F.linear(x, self.weight)
        if self.disabled:
            return plain + self.bias
        low_rank = self.lora_b(self.lora_a(self.dropout(x)))
        # through the modules, not their weights: sharding gathers parameters at module calls
        identity = torch.eye(self.in_dim, device=x.device, dtype=x.dtype)
        product = self.lora_b(self.lora_a(identity)).T.detach()
        norm = self._get_weight_norm(self.weight.to(x.dtype), product).detach()
        return self.magnitude / norm * (plain + self.scaling * low_rank) + self.bias


def _adapted(
    linear: nn.Module,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    use_dora: bool,
    quantize_base: bool,
) -> LoRALinear | DoRALinear:
    """An adapter around the very weights of ``linear``."""
    if not isinstance(linear, nn.Linear):
        raise ValueError(
            f"adapters go on plain nn.Linear projections; got {type(linear).__name__} (has the "
            "model adapters already?)"
        )
    weight = linear.weight
    dora = DoRALinear if linear.bias is None else DoRALinearWithBias
    with torch.device("meta"):  # its own random weight is thrown away
        module = (dora if use_dora else LoRALinear)(
            linear.in_features,
            linear.out_features,
            rank=rank,
            alpha=alpha,
            dropout=dropout,
            use_bias=linear.bias is not None,
        )
    module.weight, module.bias = weight, linear.bias
    module.to(weight.dtype)
    if not weight.is_meta:
        module.to_empty(device=weight.device)  # the adapter's parameters only
        module.initialize_parameters()
    if quantize_base:
        module.weight = nn.Parameter(_nf4(weight.detach()), requires_grad=False)
        module._quantize_base = True
    if use_dora and not weight.is_meta:
        module.initialize_dora_magnitude()
    return module


def _nf4(weight: torch.Tensor) -> torch.Tensor:
    if weight.numel() % _BLOCK:
        raise ValueError(
            f"NF4 holds weights whose number is a multiple of {_BLOCK}; got {tuple(weight.shape)}: "
            "use quantize_base: false"
        )
    blocks = weight.numel() // _BLOCK
    scales = next(s for s in (_SCALES >> shift for shift in range(9)) if blocks % s == 0)
    return to_nf4(weight, block_size=_BLOCK, scaler_block_size=scales)
