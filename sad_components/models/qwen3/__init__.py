"""Qwen3 (dense): builders, conversion, configs."""

from sad_components.models.family import Family
from sad_components.models.qwen3._component_builders import lora_qwen3, qwen3
from sad_components.models.qwen3._convert_weights import qwen3_hf_to_tune, qwen3_tune_to_hf
from sad_components.models.qwen3._hf_config import is_qwen3, qwen3_from_hf_config, qwen3_hf_config
from sad_components.models.qwen3._model_builders import (
    lora_qwen3_0_6b,
    lora_qwen3_1_7b,
    lora_qwen3_4b,
    lora_qwen3_8b,
    qlora_qwen3_0_6b,
    qlora_qwen3_1_7b,
    qlora_qwen3_4b,
    qlora_qwen3_8b,
    qwen3_0_6b,
    qwen3_1_7b,
    qwen3_4b,
    qwen3_8b,
)
from sad_components.models.widths import LLAMA_WIDTHS

QWEN3 = Family(
    model_type="qwen3",
    layers_key="num_hidden_layers",
    build=qwen3_from_hf_config,
    to_tune=qwen3_hf_to_tune,
    to_hf=qwen3_tune_to_hf,
    hf_config=qwen3_hf_config,
    matches=is_qwen3,
    widths=LLAMA_WIDTHS,
)

__all__ = [
    "QWEN3",
    "is_qwen3",
    "lora_qwen3",
    "lora_qwen3_0_6b",
    "lora_qwen3_1_7b",
    "lora_qwen3_4b",
    "lora_qwen3_8b",
    "qlora_qwen3_0_6b",
    "qlora_qwen3_1_7b",
    "qlora_qwen3_4b",
    "qlora_qwen3_8b",
    "qwen3",
    "qwen3_0_6b",
    "qwen3_1_7b",
    "qwen3_4b",
    "qwen3_8b",
    "qwen3_from_hf_config",
    "qwen3_hf_config",
    "qwen3_hf_to_tune",
    "qwen3_tune_to_hf",
]
