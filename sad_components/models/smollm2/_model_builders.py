"""The published sizes of SmolLM2, with flat keyword arguments for YAML.

``num_layers`` and ``max_seq_len`` may be lowered: a student with fewer layers, a shorter context.
"""

from __future__ import annotations

from functools import partial

from sad_components.models.lora import lora_versions
from sad_components.models.sizes import published_size
from sad_components.models.smollm2._component_builders import smollm2

_size = partial(published_size, smollm2, vocab_size=49_152)

smollm2_135m = _size(
    "smollm2_135m",
    "SmolLM2-135M",
    134_515_008,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    embed_dim=576,
    intermediate_dim=1536,
)
smollm2_360m = _size(
    "smollm2_360m",
    "SmolLM2-360M",
    361_821_120,
    num_layers=32,
    num_heads=15,
    num_kv_heads=5,
    embed_dim=960,
    intermediate_dim=2560,
)
smollm2_1_7b = _size(
    "smollm2_1_7b",
    "SmolLM2-1.7B",
    1_711_376_384,
    num_layers=24,
    num_heads=32,
    num_kv_heads=32,
    embed_dim=2048,
    intermediate_dim=8192,
    rope_base=130_000,
)

lora_smollm2_135m, qlora_smollm2_135m = lora_versions(smollm2_135m)
lora_smollm2_360m, qlora_smollm2_360m = lora_versions(smollm2_360m)
lora_smollm2_1_7b, qlora_smollm2_1_7b = lora_versions(smollm2_1_7b)
