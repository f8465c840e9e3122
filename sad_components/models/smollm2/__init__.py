"""SmolLM2: builders, weight conversion and configs (``LlamaForCausalLM`` in Hugging Face terms)."""

from sad_components.models.smollm2._component_builders import smollm2
from sad_components.models.smollm2._convert_weights import smollm2_hf_to_tune, smollm2_tune_to_hf
from sad_components.models.smollm2._hf_config import (
    is_smollm2,
    smollm2_from_hf_config,
    smollm2_hf_config,
)
from sad_components.models.smollm2._model_builders import smollm2_1_7b, smollm2_135m, smollm2_360m

__all__ = [
    "is_smollm2",
    "smollm2",
    "smollm2_1_7b",
    "smollm2_135m",
    "smollm2_360m",
    "smollm2_from_hf_config",
    "smollm2_hf_config",
    "smollm2_hf_to_tune",
    "smollm2_tune_to_hf",
]
