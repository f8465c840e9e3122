"""The published dense sizes of Qwen3, with flat keyword arguments for YAML.

``num_layers`` and ``max_seq_len`` may be lowered: a student with fewer layers, a shorter context.
"""

from __future__ import annotations

from torchtune.modules import TransformerDecoder

from sad_components.models.lora import lora_version
from sad_components.models.qwen3._component_builders import qwen3


def qwen3_0_6b(
    num_layers: int = 28, max_seq_len: int = 40_960, attn_dropout: float = 0.0
) -> TransformerDecoder:
    """Qwen3-0.6B, random weights: 596,049,920 parameters with all 28 layers.

    Args and Returns: see :func:`sad_components.models.qwen3.qwen3`.
    """
    return qwen3(
        vocab_size=151_936,
        num_layers=num_layers,
        num_heads=16,
        num_kv_heads=8,
        embed_dim=1024,
        intermediate_dim=3072,
        max_seq_len=max_seq_len,
        attn_dropout=attn_dropout,
    )


def qwen3_1_7b(
    num_layers: int = 28, max_seq_len: int = 40_960, attn_dropout: float = 0.0
) -> TransformerDecoder:
    """Qwen3-1.7B, random weights: 1,720,574,976 parameters with all 28 layers.

    Args and Returns: see :func:`sad_components.models.qwen3.qwen3`.
    """
    return qwen3(
        vocab_size=151_936,
        num_layers=num_layers,
        num_heads=16,
        num_kv_heads=8,
        embed_dim=2048,
        intermediate_dim=6144,
        max_seq_len=max_seq_len,
        attn_dropout=attn_dropout,
    )


def qwen3_4b(
    num_layers: int = 36, max_seq_len: int = 40_960, attn_dropout: float = 0.0
) -> TransformerDecoder:
    """Qwen3-4B, random weights: 4,022,468,096 parameters with all 36 layers.

    Args and Returns: see :func:`sad_components.models.qwen3.qwen3`.
    """
    return qwen3(
        vocab_size=151_936,
        num_layers=num_layers,
        num_heads=32,
        num_kv_heads=8,
        embed_dim=2560,
        intermediate_dim=9728,
        max_seq_len=max_seq_len,
        attn_dropout=attn_dropout,
    )


def qwen3_8b(
    num_layers: int = 36, max_seq_len: int = 40_960, attn_dropout: float = 0.0
) -> TransformerDecoder:
    """Qwen3-8B, random weights: 8,190,735,360 parameters with all 36 layers; an output of its own.

    Args and Returns: see :func:`sad_components.models.qwen3.qwen3`.
    """
    return qwen3(
        vocab_size=151_936,
        num_layers=num_layers,
        num_heads=32,
        num_kv_heads=8,
        embed_dim=4096,
        intermediate_dim=12_288,
        max_seq_len=max_seq_len,
        attn_dropout=attn_dropout,
        tie_word_embeddings=False,
    )


lora_qwen3_0_6b, qlora_qwen3_0_6b = lora_version(qwen3_0_6b), lora_version(qwen3_0_6b, "qlora")
lora_qwen3_1_7b, qlora_qwen3_1_7b = lora_version(qwen3_1_7b), lora_version(qwen3_1_7b, "qlora")
lora_qwen3_4b, qlora_qwen3_4b = lora_version(qwen3_4b), lora_version(qwen3_4b, "qlora")
lora_qwen3_8b, qlora_qwen3_8b = lora_version(qwen3_8b), lora_version(qwen3_8b, "qlora")
