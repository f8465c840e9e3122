"""Flexible builder of the SmolLM2 family: a llama-like decoder with tied embeddings."""

from __future__ import annotations

from torch import nn
from torchtune.modules import (
    FeedForward,
    MultiHeadAttention,
    RMSNorm,
    RotaryPositionalEmbeddings,
    TiedLinear,
    TransformerDecoder,
    TransformerSelfAttentionLayer,
)

from sad_components.models.initialization import init_weights


def smollm2(
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    embed_dim: int,
    intermediate_dim: int,
    max_seq_len: int = 8192,
    rope_base: float = 100_000,
    norm_eps: float = 1e-5,
    attn_dropout: float = 0.0,
    tie_word_embeddings: bool = True,
) -> TransformerDecoder:
    """A SmolLM2 decoder with random weights, N(0, 0.02) from torch's global generator.

    Pre-norm blocks of grouped-query attention with rotary positions and a SwiGLU MLP, no biases;
    Hugging Face calls the architecture ``LlamaForCausalLM``. For weights that depend on a seed
    alone see :func:`sad_components.models.from_scratch`.

    Args:
        vocab_size: number of token ids.
        num_layers: number of blocks.
        num_heads: query heads; divides ``embed_dim``.
        num_kv_heads: key/value heads; divides ``num_heads``.
        embed_dim: width of the residual stream.
        intermediate_dim: width inside the MLP.
        max_seq_len: longest sequence, in tokens.
        rope_base: base of the rotary angles.
        norm_eps: epsilon of every RMSNorm.
        attn_dropout: dropout on attention weights, in [0, 1].
        tie_word_embeddings: the output head is the embedding matrix.

    Returns:
        A ``TransformerDecoder``: token ids ``(B, S)`` to logits ``(B, S, V)``.

    Raises:
        ValueError: heads that do not divide as said above.
    """
    if embed_dim % num_heads:
        raise ValueError(
            f"embed_dim must be a multiple of num_heads; got {embed_dim} and {num_heads}"
        )
    head_dim = embed_dim // num_heads
    rope = RotaryPositionalEmbeddings(dim=head_dim, max_seq_len=max_seq_len, base=rope_base)

    def block() -> TransformerSelfAttentionLayer:
        kv_dim = num_kv_heads * head_dim
        attention = MultiHeadAttention(
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            q_proj=nn.Linear(embed_dim, embed_dim, bias=False),
            k_proj=nn.Linear(embed_dim, kv_dim, bias=False),
            v_proj=nn.Linear(embed_dim, kv_dim, bias=False),
            output_proj=nn.Linear(embed_dim, embed_dim, bias=False),
            pos_embeddings=rope,
            max_seq_len=max_seq_len,
            attn_dropout=attn_dropout,
        )
        mlp = FeedForward(
            gate_proj=nn.Linear(embed_dim, intermediate_dim, bias=False),
            down_proj=nn.Linear(intermediate_dim, embed_dim, bias=False),
            up_proj=nn.Linear(embed_dim, intermediate_dim, bias=False),
        )
        return TransformerSelfAttentionLayer(
            attn=attention,
            mlp=mlp,
            sa_norm=RMSNorm(embed_dim, eps=norm_eps),
            mlp_norm=RMSNorm(embed_dim, eps=norm_eps),
        )

    tok_embeddings = nn.Embedding(vocab_size, embed_dim)
    output = (
        TiedLinear(tok_embeddings)
        if tie_word_embeddings
        else nn.Linear(embed_dim, vocab_size, bias=False)
    )
    model = TransformerDecoder(
        tok_embeddings=tok_embeddings,
        layers=nn.ModuleList(block() for _ in range(num_layers)),
        max_seq_len=max_seq_len,
        num_heads=num_heads,
        head_dim=head_dim,
        norm=RMSNorm(embed_dim, eps=norm_eps),
        output=output,
    )
    return init_weights(model)
