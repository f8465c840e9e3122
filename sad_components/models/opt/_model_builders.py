"""The published sizes of OPT, with flat keyword arguments for YAML.

``num_layers`` and ``max_seq_len`` may be lowered: a student with fewer layers, a shorter context.
"""

from __future__ import annotations

from torchtune.modules import TransformerDecoder

from sad_components.models.lora import lora_version
from sad_components.models.opt._component_builders import opt

_VOCAB_SIZE = 50_272


def opt_125m(
    num_layers: int = 12,
    max_seq_len: int = 2048,
    dropout: float = 0.0,
    attn_dropout: float = 0.0,
) -> TransformerDecoder:
    """OPT 125M, random weights: 125,239,296 parameters with all 12 layers.

    Args and Returns: see :func:`sad_components.models.opt.opt`.
    """
    return opt(
        vocab_size=_VOCAB_SIZE,
        num_layers=num_layers,
        num_heads=12,
        embed_dim=768,
        intermediate_dim=3072,
        max_seq_len=max_seq_len,
        dropout=dropout,
        attn_dropout=attn_dropout,
    )


def opt_350m(
    num_layers: int = 24,
    max_seq_len: int = 2048,
    dropout: float = 0.0,
    attn_dropout: float = 0.0,
) -> TransformerDecoder:
    """OPT 350M, random weights: 331,196,416 parameters with all 24 layers.

    Args and Returns: see :func:`sad_components.models.opt.opt`.
    """
    return opt(
        vocab_size=_VOCAB_SIZE,
        num_layers=num_layers,
        num_heads=16,
        embed_dim=1024,
        intermediate_dim=4096,
        max_seq_len=max_seq_len,
        word_embed_dim=512,
        post_norm=True,
        dropout=dropout,
        attn_dropout=attn_dropout,
    )


def opt_1_3b(
    num_layers: int = 24,
    max_seq_len: int = 2048,
    dropout: float = 0.0,
    attn_dropout: float = 0.0,
) -> TransformerDecoder:
    """OPT 1.3B, random weights: 1,315,758,080 parameters with all 24 layers.

    Args and Returns: see :func:`sad_components.models.opt.opt`.
    """
    return opt(
        vocab_size=_VOCAB_SIZE,
        num_layers=num_layers,
        num_heads=32,
        embed_dim=2048,
        intermediate_dim=8192,
        max_seq_len=max_seq_len,
        dropout=dropout,
        attn_dropout=attn_dropout,
    )


def opt_2_7b(
    num_layers: int = 32,
    max_seq_len: int = 2048,
    dropout: float = 0.0,
    attn_dropout: float = 0.0,
) -> TransformerDecoder:
    """OPT 2.7B, random weights: 2,651,596,800 parameters with all 32 layers.

    Args and Returns: see :func:`sad_components.models.opt.opt`.
    """
    return opt(
        vocab_size=_VOCAB_SIZE,
        num_layers=num_layers,
        num_heads=32,
        embed_dim=2560,
        intermediate_dim=10_240,
        max_seq_len=max_seq_len,
        dropout=dropout,
        attn_dropout=attn_dropout,
    )


def opt_6_7b(
    num_layers: int = 32,
    max_seq_len: int = 2048,
    dropout: float = 0.0,
    attn_dropout: float = 0.0,
) -> TransformerDecoder:
    """OPT 6.7B, random weights: 6,658,473,984 parameters with all 32 layers.

    Args and Returns: see :func:`sad_components.models.opt.opt`.
    """
    return opt(
        vocab_size=_VOCAB_SIZE,
        num_layers=num_layers,
        num_heads=32,
        embed_dim=4096,
        intermediate_dim=16_384,
        max_seq_len=max_seq_len,
        dropout=dropout,
        attn_dropout=attn_dropout,
    )


def opt_13b(
    num_layers: int = 40,
    max_seq_len: int = 2048,
    dropout: float = 0.0,
    attn_dropout: float = 0.0,
) -> TransformerDecoder:
    """OPT 13B, random weights: 12,853,473,280 parameters with all 40 layers.

    Args and Returns: see :func:`sad_components.models.opt.opt`.
    """
    return opt(
        vocab_size=_VOCAB_SIZE,
        num_layers=num_layers,
        num_heads=40,
        embed_dim=5120,
        intermediate_dim=20_480,
        max_seq_len=max_seq_len,
        dropout=dropout,
        attn_dropout=attn_dropout,
    )


lora_opt_125m, qlora_opt_125m = lora_version(opt_125m), lora_version(opt_125m, "qlora")
lora_opt_350m, qlora_opt_350m = lora_version(opt_350m), lora_version(opt_350m, "qlora")
lora_opt_1_3b, qlora_opt_1_3b = lora_version(opt_1_3b), lora_version(opt_1_3b, "qlora")
lora_opt_2_7b, qlora_opt_2_7b = lora_version(opt_2_7b), lora_version(opt_2_7b, "qlora")
lora_opt_6_7b, qlora_opt_6_7b = lora_version(opt_6_7b), lora_version(opt_6_7b, "qlora")
lora_opt_13b, qlora_opt_13b = lora_version(opt_13b), lora_version(opt_13b, "qlora")
