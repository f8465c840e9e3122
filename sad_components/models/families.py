"""The model families this project can read and write, by Hugging Face's ``model_type``.

To add one, write its :class:`~sad_components.models.family.Family` and call
:func:`register_family`, from any package: see docs/new_family.md.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torchtune.modules import TransformerDecoder

from sad_components.models.family import Family, HFConfig
from sad_components.models.gpt2 import GPT2
from sad_components.models.llama import LLAMA
from sad_components.models.mistral import MISTRAL
from sad_components.models.opt import OPT
from sad_components.models.qwen2 import QWEN2
from sad_components.models.qwen3 import QWEN3

#: Where several have a model's structure and it was not built from a config, the first is taken.
FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GPT2, OPT)
}

#: The attribute of a decoder that holds the config it was built from.
_ORIGIN = "hf_config"
#: Settings of that config that say nothing about a model which may have changed since, or are
#: the other spelling of one that is read off the model.
_NOT_TAKEN_OVER = {
    "_name_or_path",
    "auto_map",
    "dtype",
    "layer_types",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "torch_dtype",
    "transformers_version",
}


def register_family(family: Family) -> None:
    """Makes ``family`` known: from then on its folders can be read, cut and written.

    Raises:
        ValueError: another family has its ``model_type``.
    """
    known = FAMILIES.setdefault(family.model_type, family)
    if known is not family:
        raise ValueError(
            f"model_type {family.model_type!r} is known already; a family of your own needs a "
            "model_type of its own"
        )


def family_of_config(config: HFConfig) -> Family:
    """The family that ``config`` (content of a ``config.json``) belongs to.

    Raises:
        ValueError: an unknown ``model_type``, or quantised weights.
    """
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(
            f"model_type must be one of {sorted(FAMILIES)}; got {model_type!r} (another can be "
            "added from your own code: docs/new_family.md)"
        )
    if config.get("quantization_config"):
        raise ValueError(
            "the checkpoint holds quantised weights (quantization_config); "
            "take the bf16 or fp32 version of this model"
        )
    return FAMILIES[model_type]


def build_decoder(config: HFConfig) -> TransformerDecoder:
    """The decoder that ``config`` describes, with random weights; it remembers the config.

    Raises:
        ValueError: an unknown family, or a config it cannot express.
    """
    model = family_of_config(config).build(config)
    setattr(model, _ORIGIN, dict(config))
    return model


def family_of_model(model: nn.Module) -> Family:
    """The family that ``model`` was built from, or else the first whose structure it has.

    Raises:
        ValueError: none has it.
    """
    origin = FAMILIES.get(getattr(model, _ORIGIN, {}).get("model_type"))
    for family in (*([origin] if origin else []), *FAMILIES.values()):
        if family.matches(model):
            return family
    raise ValueError(
        f"{type(model).__name__} has the structure of none of the families {sorted(FAMILIES)}; "
        "it cannot be described by a Hugging Face config"
    )


def hf_config_of(model: TransformerDecoder) -> dict[str, Any]:
    """The Hugging Face config of ``model``: what its modules say, the rest from its origin.

    Raises:
        ValueError: no family has its structure.
    """
    family = family_of_model(model)
    origin = getattr(model, _ORIGIN, {})
    if origin.get("model_type") != family.model_type:
        origin = {}
    kept = {key: value for key, value in origin.items() if key not in _NOT_TAKEN_OVER}
    return {**kept, **family.hf_config(model)}
