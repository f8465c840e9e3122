"""The published sizes of OPT, with flat keyword arguments for YAML.

``num_layers`` and ``max_seq_len`` may be lowered: a student with fewer layers, a shorter context.
"""

from __future__ import annotations

from functools import partial

from sad_components.models.lora import lora_versions
from sad_components.models.opt._component_builders import opt
from sad_components.models.sizes import published_size

_size = partial(published_size, opt, vocab_size=50_272)

opt_125m = _size(
    "opt_125m",
    "OPT 125M",
    125_239_296,
    num_layers=12,
    num_heads=12,
    embed_dim=768,
    intermediate_dim=3072,
)
opt_350m = _size(
    "opt_350m",
    "OPT 350M",
    331_196_416,
    num_layers=24,
    num_heads=16,
    embed_dim=1024,
    intermediate_dim=4096,
    word_embed_dim=512,
    post_norm=True,
)
opt_1_3b = _size(
    "opt_1_3b",
    "OPT 1.3B",
    1_315_758_080,
    num_layers=24,
    num_heads=32,
    embed_dim=2048,
    intermediate_dim=8192,
)
opt_2_7b = _size(
    "opt_2_7b",
    "OPT 2.7B",
    2_651_596_800,
    num_layers=32,
    num_heads=32,
    embed_dim=2560,
    intermediate_dim=10_240,
)
opt_6_7b = _size(
    "opt_6_7b",
    "OPT 6.7B",
    6_658_473_984,
    num_layers=32,
    num_heads=32,
    embed_dim=4096,
    intermediate_dim=16_384,
)
opt_13b = _size(
    "opt_13b",
    "OPT 13B",
    12_853_473_280,
    num_layers=40,
    num_heads=40,
    embed_dim=5120,
    intermediate_dim=20_480,
)

lora_opt_125m, qlora_opt_125m = lora_versions(opt_125m)
lora_opt_350m, qlora_opt_350m = lora_versions(opt_350m)
lora_opt_1_3b, qlora_opt_1_3b = lora_versions(opt_1_3b)
lora_opt_2_7b, qlora_opt_2_7b = lora_versions(opt_2_7b)
lora_opt_6_7b, qlora_opt_6_7b = lora_versions(opt_6_7b)
lora_opt_13b, qlora_opt_13b = lora_versions(opt_13b)
