"""Builders of published sizes, made of a family's flexible builder."""

from __future__ import annotations

import inspect
from typing import Any

from torchtune.modules import TransformerDecoder

from sad_components.models.lora import Builder

#: What a published size still lets one choose, where the family's builder has it.
_FREE = ("num_layers", "max_seq_len", "dropout", "attn_dropout")


def published_size(
    builder: Builder, name: str, title: str, num_parameters: int, **size: Any
) -> Builder:
    """The function ``name``: ``builder`` with the arguments of a published size.

    Args:
        builder: makes a family's decoder; all its arguments can be given by name.
        name: of the function, in the package of ``builder``.
        title: what people call the size.
        num_parameters: how many it has, for the docstring.
        size: its arguments. Of those that are still free, the values are defaults.

    Returns:
        A function with flat arguments for YAML, all with defaults: ``num_layers`` and
        ``max_seq_len``, which may be lowered (a student with fewer layers, a shorter context),
        and the dropouts that the family has.

    Example:
        >>> from sad_components.models.smollm2 import smollm2
        >>> tiny = dict(vocab_size=64, num_heads=2, num_kv_heads=1, embed_dim=8)
        >>> tiny = published_size(
        ...     smollm2, "tiny", "Tiny", 1024, num_layers=4, intermediate_dim=16, **tiny
        ... )
        >>> len(tiny(num_layers=3).layers)
        3
    """
    own = inspect.signature(builder).parameters
    signature = inspect.Signature(
        [own[key].replace(default=size.get(key, own[key].default)) for key in _FREE if key in own],
        return_annotation=TransformerDecoder,
    )

    def build(*args: Any, **kwargs: Any) -> TransformerDecoder:
        return builder(**{**size, **signature.bind(*args, **kwargs).arguments})

    package = builder.__module__.rpartition(".")[0]
    build.__signature__ = signature  # type: ignore[attr-defined]
    build.__name__ = build.__qualname__ = name
    build.__module__ = package
    build.__doc__ = (
        f"{title}, random weights: {num_parameters:,} parameters with all {size['num_layers']} "
        f"layers.\n\nArgs and Returns: see :func:`{package}.{builder.__name__}`."
    )
    return build
