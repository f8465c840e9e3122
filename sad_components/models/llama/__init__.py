"""Llama 1 to 3.x (and SmolLM2, which is one): builders, conversion, configs."""

from sad_components.models.family import Family
from sad_components.models.llama._component_builders import llama, lora_llama
from sad_components.models.llama._convert_weights import llama_hf_to_tune, llama_tune_to_hf
from sad_components.models.llama._hf_config import (
    is_llama,
    llama_from_hf_config,
    llama_hf_config,
)
from sad_components.models.widths import LLAMA_WIDTHS

LLAMA = Family(
    model_type="llama",
    layers_key="num_hidden_layers",
    build=llama_from_hf_config,
    to_tune=llama_hf_to_tune,
    to_hf=llama_tune_to_hf,
    hf_config=llama_hf_config,
    matches=is_llama,
    widths=LLAMA_WIDTHS,
)

__all__ = [
    "LLAMA",
    "is_llama",
    "llama",
    "llama_from_hf_config",
    "llama_hf_config",
    "llama_hf_to_tune",
    "llama_tune_to_hf",
    "lora_llama",
]
