"""Low-rank adapters (LoRA, DoRA, QLoRA) on any decoder, with torchtune's modules and names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from torchao.dtypes.nf4tensor import linear_nf4, to_nf4
from torchtune.modules import TiedLinear, TransformerDecoder
from torchtune.modules.common_utils import reparametrize_as_dtype_state_dict_post_hook
from torchtune.modules.peft import DoRALinear, LoRALinear, get_adapter_params

Adapter = LoRALinear | DoRALinear
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
    build.plain_builder = builder  # type: ignore[attr-defined]
    build.__doc__ = (
        f":func:`{builder.__name__}` with adapters: the arguments of "
        ":func:`sad_components.models.lora.add_lora_`, then its own by name."
    )
    return build


def lora_versions(builder: Builder) -> tuple[Builder, Builder]:
    """The builders ``lora_..`` and ``qlora_..`` of a builder; see :func:`lora_version`."""
    return lora_version(builder), lora_version(builder, "qlora")


def without_adapters(
    builder: Callable[..., Any], arguments: Mapping[str, Any]
) -> tuple[Callable[..., Any], dict[str, Any], dict[str, Any] | None]:
    """What a :func:`lora_version` is made of, with its arguments shared out.

    Args:
        builder: any callable.
        arguments: for it, by name.

    Returns:
        The plain builder, its arguments, and those of :func:`add_lora_`; where ``builder`` is no
        ``lora_version``, itself with all arguments, and None.
    """
    plain = getattr(builder, "plain_builder", None)
    if plain is None:
        return builder, dict(arguments), None
    defaults = {p.name: p.default for p in inspect.signature(builder).parameters.values()}
    own = set(inspect.signature(add_lora_).parameters)
    adapters = {k: v for k, v in {**defaults, **arguments}.items() if k in own}
    return plain, {k: v for k, v in arguments.items() if k not in own}, adapters


def adapters_of(model: nn.Module) -> dict[str, Adapter]:
    """The projections of ``model`` that have an adapter, by their names."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Adapter)}


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What training changes, by name: the adapters' parameters, or all where there are none."""
    return get_adapter_params(model) or dict(model.named_parameters())


def base_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """``model.state_dict()`` without adapters; NF4 weights in the model's dtype."""
    adapters = get_adapter_params(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in adapters}


@torch.no_grad()
def merged_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights of the plain model that computes what ``model`` does; ``model`` stays as it is.

    ``W + s B A``, with DoRA ``m / ||W + s B A|| * (W + s B A)``, summed in fp32 or wider and
    rounded once; an NF4 ``W`` is dequantised. Other tensors are the model's own, not copies.
    """
    state = base_state_dict(model)
    for name, module in adapters_of(model).items():
        weight = state[f"{name}.weight"]
        wide = torch.promote_types(weight.dtype, torch.float32)
        product = module.lora_b.weight.to(wide) @ module.lora_a.weight.to(wide)
        merged = weight.to(wide) + scaling_of(module) * product
        if isinstance(module, DoRALinear):
            norm = torch.linalg.norm(merged, dim=1)
            merged *= (module.magnitude.to(wide) / norm)[:, None]
        state[f"{name}.weight"] = merged.to(weight.dtype)
    return state


def scaling_of(module: Adapter) -> float:
    """``alpha / rank`` of an adapter."""
    return module.scaling if isinstance(module, DoRALinear) else module.alpha / module.rank


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
) -> Adapter:
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
        module.weight = nn.Parameter(nf4_weight(weight.detach()), requires_grad=False)
        module._quantize_base = True
    if use_dora and not weight.is_meta:
        module.initialize_dora_magnitude()
    return module


def nf4_weight(weight: torch.Tensor) -> torch.Tensor:
    """``weight`` in NF4, scales in as large groups as divide.

    Raises:
        ValueError: its number of values is no multiple of 64.
    """
    if weight.numel() % _BLOCK:
        raise ValueError(
            f"NF4 holds weights whose number is a multiple of {_BLOCK}; got {tuple(weight.shape)}: "
            "use quantize_base: false"
        )
    blocks = weight.numel() // _BLOCK
    scales = next(s for s in (_SCALES >> shift for shift in range(9)) if blocks % s == 0)
    return to_nf4(weight, block_size=_BLOCK, scaler_block_size=scales)
