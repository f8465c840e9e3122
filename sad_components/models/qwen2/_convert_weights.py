"""Weights between Hugging Face's ``Qwen2ForCausalLM`` and torchtune, both ways.

Only names change: torchtune's rotary embedding of this family pairs elements as Hugging Face does.
"""

from __future__ import annotations

from sad_components.models.renaming import LLAMA_INSIDE, LLAMA_OUTSIDE, Renaming

_BIASES = {f"self_attn.{name}_proj.bias": f"attn.{name}_proj.bias" for name in "qkv"}
_NAMES = Renaming("qwen2", LLAMA_OUTSIDE, {**LLAMA_INSIDE, **_BIASES})

qwen2_hf_to_tune = _NAMES.hf_to_tune
qwen2_tune_to_hf = _NAMES.tune_to_hf
