"""Qwen 2 and 2.5: configs and conversion.

Sizes, also with LoRA, are torchtune's own (``torchtune.models.qwen2_5.qwen2_5_0_5b``, ..).
"""

from sad_components.models.family import Family
from sad_components.models.qwen2._convert_weights import qwen2_hf_to_tune, qwen2_tune_to_hf
from sad_components.models.qwen2._hf_config import (
    check_qwen_window,
    is_qwen2,
    qwen2_from_hf_config,
    qwen2_hf_config,
)
from sad_components.models.widths import QWEN2_WIDTHS

QWEN2 = Family(
    model_type="qwen2",
    layers_key="num_hidden_layers",
    build=qwen2_from_hf_config,
    to_tune=qwen2_hf_to_tune,
    to_hf=qwen2_tune_to_hf,
    hf_config=qwen2_hf_config,
    matches=is_qwen2,
    widths=QWEN2_WIDTHS,
)

__all__ = [
    "QWEN2",
    "check_qwen_window",
    "is_qwen2",
    "qwen2_from_hf_config",
    "qwen2_hf_config",
    "qwen2_hf_to_tune",
    "qwen2_tune_to_hf",
]
