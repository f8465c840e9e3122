"""GPT-2: builders, conversion, configs."""

from sad_components.models.family import Family
from sad_components.models.gpt2._component_builders import gpt2, lora_gpt2
from sad_components.models.gpt2._convert_weights import gpt2_hf_to_tune, gpt2_tune_to_hf
from sad_components.models.gpt2._hf_config import gpt2_from_hf_config, gpt2_hf_config, is_gpt2
from sad_components.models.gpt2._model_builders import (
    gpt2_124m,
    gpt2_355m,
    gpt2_774m,
    gpt2_1558m,
    lora_gpt2_124m,
    lora_gpt2_355m,
    lora_gpt2_774m,
    lora_gpt2_1558m,
    qlora_gpt2_124m,
    qlora_gpt2_355m,
    qlora_gpt2_774m,
    qlora_gpt2_1558m,
)
from sad_components.models.widths import GPT2_WIDTHS

GPT2 = Family(
    model_type="gpt2",
    layers_key="n_layer",
    build=gpt2_from_hf_config,
    to_tune=gpt2_hf_to_tune,
    to_hf=gpt2_tune_to_hf,
    hf_config=gpt2_hf_config,
    matches=is_gpt2,
    widths=GPT2_WIDTHS,
)

__all__ = [
    "GPT2",
    "gpt2",
    "gpt2_124m",
    "gpt2_355m",
    "gpt2_774m",
    "gpt2_1558m",
    "gpt2_from_hf_config",
    "gpt2_hf_config",
    "gpt2_hf_to_tune",
    "gpt2_tune_to_hf",
    "is_gpt2",
    "lora_gpt2",
    "lora_gpt2_124m",
    "lora_gpt2_355m",
    "lora_gpt2_774m",
    "lora_gpt2_1558m",
    "qlora_gpt2_124m",
    "qlora_gpt2_355m",
    "qlora_gpt2_774m",
    "qlora_gpt2_1558m",
]
