"""The published dense sizes of Qwen3, with flat keyword arguments for YAML.

``num_layers`` and ``max_seq_len`` may be lowered: a student with fewer layers, a shorter context.
"""

from __future__ import annotations

from functools import partial

from sad_components.models.lora import lora_versions
from sad_components.models.qwen3._component_builders import qwen3
from sad_components.models.sizes import published_size

_size = partial(published_size, qwen3, vocab_size=151_936, num_kv_heads=8)

qwen3_0_6b = _size(
    "qwen3_0_6b",
    "Qwen3-0.6B",
    596_049_920,
    num_layers=28,
    num_heads=16,
    embed_dim=1024,
    intermediate_dim=3072,
)
qwen3_1_7b = _size(
    "qwen3_1_7b",
    "Qwen3-1.7B",
    1_720_574_976,
    num_layers=28,
    num_heads=16,
    embed_dim=2048,
    intermediate_dim=6144,
)
qwen3_4b = _size(
    "qwen3_4b",
    "Qwen3-4B",
    4_022_468_096,
    num_layers=36,
    num_heads=32,
    embed_dim=2560,
    intermediate_dim=9728,
)
qwen3_8b = _size(
    "qwen3_8b",
    "Qwen3-8B (an output of its own)",
    8_190_735_360,
    num_layers=36,
    num_heads=32,
    embed_dim=4096,
    intermediate_dim=12_288,
    tie_word_embeddings=False,
)

lora_qwen3_0_6b, qlora_qwen3_0_6b = lora_versions(qwen3_0_6b)
lora_qwen3_1_7b, qlora_qwen3_1_7b = lora_versions(qwen3_1_7b)
lora_qwen3_4b, qlora_qwen3_4b = lora_versions(qwen3_4b)
lora_qwen3_8b, qlora_qwen3_8b = lora_versions(qwen3_8b)
