"""What an exported student's weights become, and the eager decoder that is exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchao.quantization import (
    IntxUnpackedToInt8Tensor,
    IntxWeightOnlyConfig,
    PerAxis,
    PerGroup,
    quantize_,
)
from torchtune.modules import TiedLinear, TransformerDecoder

from sad_components.models import from_pretrained
from sad_components.models.checkpoint import load_hf_config
from sad_components.models.quantized import (
    Scheme,
    load_quantized,
    quantize_linears_,
    quantized_scheme,
)
from sad_components.models.torchao_folders import quantize_layer_, quantize_torchao_

#: Of linear layers, through XNNPACK: weights in 4 or 8 bits, inputs as int8 by token.
PTE_SCHEMES = ("8da4w", "8da8w")
#: Through XNNPACK's partitioner these give other numbers than eager, without an error.
_SILENTLY_WRONG = ("int4", "int8_weight_only", "int4_weight_only")
EMBEDDINGS = {"int8": torch.int8, "int4": torch.int4}


@dataclass(frozen=True)
class Variant:
    """How a student's numbers are held in a ``.pte``.

    Args:
        scheme: of the linear layers but the head: None (fp32), ``8da4w`` or ``8da8w``. A student
            that is quantised already (trained with ``qat``) keeps its own.
        group_size: weights of a row that share a scale, in ``8da4w``.
        head: the same of the output head. A head that is tied to the embedding is a matrix of its
            own there.
        embedding: None (fp32), ``int8`` (a scale a row) or ``int4`` (a scale for each group).

    Raises:
        ValueError: another value; weight-only schemes are refused with their reason.
    """

    scheme: str | None = None
    group_size: int = 32
    head: str | None = None
    embedding: str | None = None

    def __post_init__(self) -> None:
        for name in ("scheme", "head"):
            value = getattr(self, name)
            if value in _SILENTLY_WRONG:
                raise ValueError(
                    f"{name}: {value} (weights alone) comes out of XNNPACK's partitioner of "
                    "ExecuTorch 1.4.1 with wrong numbers and no error (relative errors of 65 and "
                    f"more were seen): use one of {', '.join(PTE_SCHEMES)}"
                )
            if value is not None and value not in PTE_SCHEMES:
                raise ValueError(
                    f"{name} of a .pte is null or one of {', '.join(PTE_SCHEMES)}; got {value!r}"
                )
        if self.embedding is not None and self.embedding not in EMBEDDINGS:
            raise ValueError(
                f"embedding is null or one of {', '.join(EMBEDDINGS)}; got {self.embedding!r}"
            )
        Scheme("8da4w", self.group_size)  # refuses other sizes

    def described(self) -> dict[str, Any]:
        """For the manifest; empty of plain fp32."""
        found = {"linear": self.scheme, "head": self.head, "embedding": self.embedding}
        grouped = "8da4w" in (self.scheme, self.head) or self.embedding == "int4"
        if not any(found.values()):
            return {}
        return {**found, "group_size": self.group_size} if grouped else found


def exported_variant(folder: str | Path, variant: Variant) -> Variant:
    """``variant`` with the scheme that the student in ``folder`` has already, if it has one.

    Raises:
        ValueError: the student is quantised by another scheme.
    """
    config = load_hf_config(folder)
    own = quantized_scheme(config)
    if own is None:
        return variant
    size = config["quantization_config"].get("group_size", variant.group_size)
    if variant.scheme not in (None, own):
        raise ValueError(
            f"{folder} holds a student quantised by {own}; it cannot become {variant.scheme}: "
            f"leave scheme out, or export the student that is not quantised"
        )
    return Variant(own, size, variant.head, variant.embedding)


def prepare(folder: str | Path, variant: Variant) -> TransformerDecoder:
    """The eager decoder that is exported: what the ``.pte`` must agree with.

    Its head is a layer of its own, also where the student's is tied to the embedding, and scales of
    groups of weights are rounded to bf16: XNNPACK holds them so.

    Args:
        folder: a student in Hugging Face format, or one that is quantised.
        variant: see :func:`exported_variant`.

    Raises:
        ValueError: the folder cannot be read, holds a quantised student in another dtype than
            fp32, or a layer cannot be quantised so.
    """
    if quantized_scheme(load_hf_config(folder)) is not None:
        model = load_quantized(folder, device="cpu")
        dtype = model.tok_embeddings.weight.dtype
        if dtype != torch.float32:
            raise ValueError(
                f"{folder} holds a quantised student in {str(dtype).removeprefix('torch.')}; "
                "XNNPACK's kernels are exported from fp32: train it with dtype: fp32"
            )
    else:
        model = from_pretrained(folder, dtype=torch.float32, device="cpu", dropout=0.0)
        if variant.scheme == "8da4w":
            quantize_linears_(model, Scheme("8da4w", variant.group_size))
        elif variant.scheme is not None:
            quantize_torchao_(model, variant.scheme)
    untie_(model)
    if variant.head is not None:
        _quantize_head_(model.output, variant)
    _round_group_scales_(model)
    if variant.embedding is not None:
        _quantize_embedding_(model, variant)
    return model.eval().requires_grad_(False)


def untie_(model: TransformerDecoder) -> TransformerDecoder:
    """``model`` with an output head of its own, a copy of the embedding where it was tied."""
    if isinstance(model.output, TiedLinear):
        weight = model.output.tied_module.weight.detach()
        head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        head.weight = nn.Parameter(weight.clone(), requires_grad=False)
        model.output = head
    return model


@torch.no_grad()
def _round_group_scales_(model: TransformerDecoder) -> None:
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, IntxUnpackedToInt8Tensor) and weight.scale.shape[-1] > 1:
            weight.scale.copy_(weight.scale.bfloat16())


def _quantize_head_(head: nn.Linear, variant: Variant) -> None:
    if variant.head == "8da8w":
        quantize_layer_(head, "8da8w", "the output head")
        return
    if head.in_features % variant.group_size:
        raise ValueError(
            f"a group size of {variant.group_size} does not divide the {head.in_features} inputs "
            "of the output head: take head: 8da8w, or another group_size"
        )
    config = Scheme("8da4w", variant.group_size).torchao_config()
    quantize_(nn.ModuleDict({"head": head}), config, filter_fn=lambda m, _: m is head)


def _quantize_embedding_(model: TransformerDecoder, variant: Variant) -> None:
    table = model.tok_embeddings
    size = variant.group_size
    if variant.embedding == "int4" and table.embedding_dim % size:
        raise ValueError(
            f"a group size of {size} does not divide the embedding's width, {table.embedding_dim}:"
            " take embedding: int8, or another group_size"
        )
    granularity = PerAxis(0) if variant.embedding == "int8" else PerGroup(size)
    config = IntxWeightOnlyConfig(
        weight_dtype=EMBEDDINGS[variant.embedding], granularity=granularity
    )
    quantize_(nn.ModuleDict({"table": table}), config, filter_fn=lambda m, _: m is table)
