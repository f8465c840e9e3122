"""The published sizes of SmolLM2, with flat keyword arguments for YAML.

``num_layers`` and ``max_seq_len`` may be lowered: a student with fewer layers, a shorter context.
"""

from __future__ import annotations

from torchtune.modules import TransformerDecoder

from sad_components.models.lora import lora_version
from sad_components.models.smollm2._component_builders import smollm2


def smollm2_135m(
    num_layers: int = 30, max_seq_len: int = 8192, attn_dropout: float = 0.0
) -> TransformerDecoder:
    """SmolLM2-135M, random weights: 134,515,008 parameters with all 30 layers.

    Args and Returns: see :func:`sad_components.models.smollm2.smollm2`.
    """
    return smollm2(
        vocab_size=49_152,
        num_layers=num_layers,
        num_heads=9,
        num_kv_heads=3,
        embed_dim=576,
        intermediate_dim=1536,
        max_seq_len=max_seq_len,
        rope_base=100_000,
        attn_dropout=attn_dropout,
    )


def smollm2_360m(
    num_layers: int = 32, max_seq_len: int = 8192, attn_dropout: float = 0.0
) -> TransformerDecoder:
    """SmolLM2-360M, random weights: 361,821,120 parameters with all 32 layers.

    Args and Returns: see :func:`sad_components.models.smollm2.smollm2`.
    """
    return smollm2(
        vocab_size=49_152,
        num_layers=num_layers,
        num_heads=15,
        num_kv_heads=5,
        embed_dim=960,
        intermediate_dim=2560,
        max_seq_len=max_seq_len,
        rope_base=100_000,
        attn_dropout=attn_dropout,
    )


def smollm2_1_7b(
    num_layers: int = 24, max_seq_len: int = 8192, attn_dropout: float = 0.0
) -> TransformerDecoder:
    """SmolLM2-1.7B, random weights: 1,711,376,384 parameters with all 24 layers.

    Args and Returns: see :func:`sad_components.models.smollm2.smollm2`.
    """
    return smollm2(
        vocab_size=49_152,
        num_layers=num_layers,
        num_heads=32,
        num_kv_heads=32,
        embed_dim=2048,
        intermediate_dim=8192,
        max_seq_len=max_seq_len,
        rope_base=130_000,
        attn_dropout=attn_dropout,
    )


lora_smollm2_135m = lora_version(smollm2_135m)
lora_smollm2_360m = lora_version(smollm2_360m)
lora_smollm2_1_7b = lora_version(smollm2_1_7b)
qlora_smollm2_135m = lora_version(smollm2_135m, "qlora")
qlora_smollm2_360m = lora_version(smollm2_360m, "qlora")
qlora_smollm2_1_7b = lora_version(smollm2_1_7b, "qlora")
