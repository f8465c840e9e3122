"""Reading a Hugging Face ``config.json``: what must be there, and what no decoder here can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

#: What a llama-like config must say, or the decoder's shape is unknown.
LLAMA_SIZES = (
    "vocab_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_size",
    "intermediate_size",
)
#: What rotary positions scaled as in Llama 3.1 consist of, by the config's names.
LLAMA3_SCALING = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)


class Rope(NamedTuple):
    """Rotary positions.

    Args:
        base: of the angles.
        scaling: the settings :data:`LLAMA3_SCALING`; None for plain positions.
    """

    base: float
    scaling: dict[str, float] | None


def check_sizes(config: Mapping[str, Any], keys: Sequence[str], family: str) -> None:
    """Raises ``ValueError`` unless each of ``keys`` is an integer > 0."""
    for key in keys:
        if not isinstance(config.get(key), int) or config[key] < 1:
            raise ValueError(
                f"a {family} config must set {key} to an integer > 0; got {config.get(key)!r}"
            )


def check_fixed(config: Mapping[str, Any], fixed: Mapping[str, Any], family: str) -> None:
    """Raises ``ValueError`` where the config names another value than the family's only one."""
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise ValueError(
                f"the {family} family needs {key}={value!r}; the config says {config[key]!r}: "
                "such a model needs a family of its own (docs/new_family.md)"
            )


def check_head_dim(config: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` unless heads share the width evenly, as the family's builder wants."""
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    if config.get("head_dim") not in (None, head_dim):
        raise ValueError(
            f"head_dim must be hidden_size / num_attention_heads = {head_dim}; "
            f"the config says {config['head_dim']}"
        )


def check_full_attention(config: Mapping[str, Any], window: int | None) -> None:
    """Raises ``ValueError`` where a sliding window would hide something within the context.

    Args:
        config: with ``max_position_embeddings``.
        window: tokens that a layer sees; None: all.
    """
    context = config["max_position_embeddings"]
    if window is not None and window < context:
        raise ValueError(
            f"sliding windows are not supported: the config's window of {window} tokens is shorter "
            f"than its context of {context}. Within {window} tokens both are the same: set "
            f"max_position_embeddings to {window} in config.json, or take a model without a window"
        )


def rope_of(config: Mapping[str, Any], *, scalable: bool) -> Rope:
    """The config's rotary positions.

    Args:
        config: as old or new transformers write it (``rope_theta`` and ``rope_scaling``, or
            ``rope_parameters``).
        scalable: whether the family knows Llama 3.1's scaling.

    Raises:
        ValueError: another scaling, or an incomplete one.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    base = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type == "default":
        return Rope(base, None)
    if rope_type != "llama3" or not scalable:
        known = "plain rotary positions or rope_type='llama3'" if scalable else "plain positions"
        raise ValueError(f"this family needs {known}; the config asks for rope_type={rope_type!r}")
    missing = [key for key in LLAMA3_SCALING if not isinstance(rope.get(key), int | float)]
    if missing:
        raise ValueError(f"rope_type 'llama3' needs numbers for {missing}; got {dict(rope)}")
    return Rope(base, {key: rope[key] for key in LLAMA3_SCALING})
