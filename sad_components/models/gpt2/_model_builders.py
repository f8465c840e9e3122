"""The published sizes of GPT-2, with flat keyword arguments for YAML.

``num_layers`` and ``max_seq_len`` may be lowered: a student with fewer layers, a shorter context.
"""

from __future__ import annotations

from torchtune.modules import TransformerDecoder

from sad_components.models.gpt2._component_builders import gpt2
from sad_components.models.lora import lora_version

_VOCAB_SIZE = 50_257


def gpt2_124m(
    num_layers: int = 12,
    max_seq_len: int = 1024,
    dropout: float = 0.0,
    attn_dropout: float = 0.0,
) -> TransformerDecoder:
    """GPT-2 small, random weights: 124,439,808 parameters with all 12 layers.

    Args and Returns: see :func:`sad_components.models.gpt2.gpt2`.
    """
    return gpt2(
        vocab_size=_VOCAB_SIZE,
        num_layers=num_layers,
        num_heads=12,
        embed_dim=768,
        max_seq_len=max_seq_len,
        dropout=dropout,
        attn_dropout=attn_dropout,
    )


def gpt2_355m(
    num_layers: int = 24,
    max_seq_len: int = 1024,
    dropout: float = 0.0,
    attn_dropout: float = 0.0,
) -> TransformerDecoder:
    """GPT-2 medium, random weights: 354,823,168 parameters with all 24 layers.

    Args and Returns: see :func:`sad_components.models.gpt2.gpt2`.
    """
    return gpt2(
        vocab_size=_VOCAB_SIZE,
        num_layers=num_layers,
        num_heads=16,
        embed_dim=1024,
        max_seq_len=max_seq_len,
        dropout=dropout,
        attn_dropout=attn_dropout,
    )


def gpt2_774m(
    num_layers: int = 36,
    max_seq_len: int = 1024,
    dropout: float = 0.0,
    attn_dropout: float = 0.0,
) -> TransformerDecoder:
    """GPT-2 large, random weights: 774,030,080 parameters with all 36 layers.

    Args and Returns: see :func:`sad_components.models.gpt2.gpt2`.
    """
    return gpt2(
        vocab_size=_VOCAB_SIZE,
        num_layers=num_layers,
        num_heads=20,
        embed_dim=1280,
        max_seq_len=max_seq_len,
        dropout=dropout,
        attn_dropout=attn_dropout,
    )


def gpt2_1558m(
    num_layers: int = 48,
    max_seq_len: int = 1024,
    dropout: float = 0.0,
    attn_dropout: float = 0.0,
) -> TransformerDecoder:
    """GPT-2 XL, random weights: 1,557,611,200 parameters with all 48 layers.

    Args and Returns: see :func:`sad_components.models.gpt2.gpt2`.
    """
    return gpt2(
        vocab_size=_VOCAB_SIZE,
        num_layers=num_layers,
        num_heads=25,
        embed_dim=1600,
        max_seq_len=max_seq_len,
        dropout=dropout,
        attn_dropout=attn_dropout,
    )


lora_gpt2_124m, qlora_gpt2_124m = lora_version(gpt2_124m), lora_version(gpt2_124m, "qlora")
lora_gpt2_355m, qlora_gpt2_355m = lora_version(gpt2_355m), lora_version(gpt2_355m, "qlora")
lora_gpt2_774m, qlora_gpt2_774m = lora_version(gpt2_774m), lora_version(gpt2_774m, "qlora")
lora_gpt2_1558m, qlora_gpt2_1558m = lora_version(gpt2_1558m), lora_version(gpt2_1558m, "qlora")
