"""The published sizes of GPT-2, with flat keyword arguments for YAML.

``num_layers`` and ``max_seq_len`` may be lowered: a student with fewer layers, a shorter context.
"""

from __future__ import annotations

from functools import partial

from sad_components.models.gpt2._component_builders import gpt2
from sad_components.models.lora import lora_versions
from sad_components.models.sizes import published_size

_size = partial(published_size, gpt2, vocab_size=50_257)

gpt2_124m = _size(
    "gpt2_124m", "GPT-2 small", 124_439_808, num_layers=12, num_heads=12, embed_dim=768
)
gpt2_355m = _size(
    "gpt2_355m", "GPT-2 medium", 354_823_168, num_layers=24, num_heads=16, embed_dim=1024
)
gpt2_774m = _size(
    "gpt2_774m", "GPT-2 large", 774_030_080, num_layers=36, num_heads=20, embed_dim=1280
)
gpt2_1558m = _size(
    "gpt2_1558m", "GPT-2 XL", 1_557_611_200, num_layers=48, num_heads=25, embed_dim=1600
)

lora_gpt2_124m, qlora_gpt2_124m = lora_versions(gpt2_124m)
lora_gpt2_355m, qlora_gpt2_355m = lora_versions(gpt2_355m)
lora_gpt2_774m, qlora_gpt2_774m = lora_versions(gpt2_774m)
lora_gpt2_1558m, qlora_gpt2_1558m = lora_versions(gpt2_1558m)
