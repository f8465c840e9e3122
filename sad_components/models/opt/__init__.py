"""OPT: builders, conversion, configs."""

from sad_components.models.family import Family
from sad_components.models.opt._component_builders import lora_opt, opt
from sad_components.models.opt._convert_weights import opt_hf_to_tune, opt_tune_to_hf
from sad_components.models.opt._hf_config import is_opt, opt_from_hf_config, opt_hf_config
from sad_components.models.opt._model_builders import (
    lora_opt_1_3b,
    lora_opt_2_7b,
    lora_opt_6_7b,
    lora_opt_13b,
    lora_opt_125m,
    lora_opt_350m,
    opt_1_3b,
    opt_2_7b,
    opt_6_7b,
    opt_13b,
    opt_125m,
    opt_350m,
    qlora_opt_1_3b,
    qlora_opt_2_7b,
    qlora_opt_6_7b,
    qlora_opt_13b,
    qlora_opt_125m,
    qlora_opt_350m,
)
from sad_components.models.widths import OPT_WIDTHS

OPT = Family(
    model_type="opt",
    layers_key="num_hidden_layers",
    build=opt_from_hf_config,
    to_tune=opt_hf_to_tune,
    to_hf=opt_tune_to_hf,
    hf_config=opt_hf_config,
    matches=is_opt,
    widths=OPT_WIDTHS,
)

__all__ = [
    "OPT",
    "is_opt",
    "lora_opt",
    "lora_opt_125m",
    "lora_opt_13b",
    "lora_opt_1_3b",
    "lora_opt_2_7b",
    "lora_opt_350m",
    "lora_opt_6_7b",
    "opt",
    "opt_125m",
    "opt_13b",
    "opt_1_3b",
    "opt_2_7b",
    "opt_350m",
    "opt_6_7b",
    "opt_from_hf_config",
    "opt_hf_config",
    "opt_hf_to_tune",
    "opt_tune_to_hf",
    "qlora_opt_125m",
    "qlora_opt_13b",
    "qlora_opt_1_3b",
    "qlora_opt_2_7b",
    "qlora_opt_350m",
    "qlora_opt_6_7b",
]
