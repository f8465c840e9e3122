"""Weights between Hugging Face's ``Qwen3ForCausalLM`` and torchtune, both ways: names only."""

from __future__ import annotations

from sad_components.models.renaming import LLAMA_INSIDE, LLAMA_OUTSIDE, Renaming

_NORMS = {f"self_attn.{name}_norm.weight": f"attn.{name}_norm.scale" for name in "qk"}
_NAMES = Renaming("qwen3 (without biases)", LLAMA_OUTSIDE, {**LLAMA_INSIDE, **_NORMS})

qwen3_hf_to_tune = _NAMES.hf_to_tune
qwen3_tune_to_hf = _NAMES.tune_to_hf
