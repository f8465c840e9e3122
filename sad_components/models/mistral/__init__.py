"""Mistral 7B: a llama, as long as its window hides nothing.

Sizes are torchtune's own (``torchtune.models.mistral.mistral_7b``).
"""

from sad_components.models.family import Family
from sad_components.models.llama import is_llama, llama_hf_to_tune, llama_tune_to_hf
from sad_components.models.mistral._hf_config import mistral_from_hf_config, mistral_hf_config
from sad_components.models.widths import LLAMA_WIDTHS

MISTRAL = Family(
    model_type="mistral",
    layers_key="num_hidden_layers",
    build=mistral_from_hf_config,
    to_tune=llama_hf_to_tune,
    to_hf=llama_tune_to_hf,
    hf_config=mistral_hf_config,
    matches=is_llama,
    widths=LLAMA_WIDTHS,
)

__all__ = ["MISTRAL", "mistral_from_hf_config", "mistral_hf_config"]
