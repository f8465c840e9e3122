"""The decoder that llama and its successors share, around an attention of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torchtune.modules import (
    FeedForward,
    MultiHeadAttention,
    RMSNorm,
    TiedLinear,
    TransformerDecoder,
    TransformerSelfAttentionLayer,
)

from sad_components.models.initialization import init_weights


class NormFirstAttention(MultiHeadAttention):
    """Self-attention that norms queries and keys before it turns them to their positions.

    torchtune's own norms them afterwards, which is another function unless a norm's scale is the
    same for both members of each rotated pair. Parameters are named alike.
    """

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        mask: Any = None,
        input_pos: Tensor | None = None,
    ) -> Tensor:
        """As :meth:`torchtune.modules.MultiHeadAttention.forward`; ``y`` None means ``x``."""
        source = x if y is None else y
        query = self.heads(self.q_proj(x), self.q_norm, input_pos)
        key = self.heads(self.k_proj(source), self.k_norm, input_pos)
        value = self.v_proj(source).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        if self.kv_cache is not None and self.cache_enabled:
            key, value = self.kv_cache.update(key, value)
        if self.num_heads != self.num_kv_heads:
            group = self.num_heads // self.num_kv_heads
            key, value = (t.repeat_interleave(group, dim=1) for t in (key, value))
        attended = self._attention_call(
            query,
            key,
            value,
            mask=mask,
            dropout_p=self.attn_dropout if self.training else 0.0,
            is_causal=self.kv_cache is None and mask is None and self.is_causal,
        )
        return self.output_proj(attended.transpose(1, 2).flatten(2))

    def heads(self, projected: Tensor, norm: nn.Module | None, positions: Tensor | None) -> Tensor:
        """Heads [B, H, S, d] of a projection [B, S, H * d], normed and then with positions."""
        heads = projected.unflatten(-1, (-1, self.head_dim))
        heads = heads if norm is None else norm(heads)
        if self.pos_embeddings is not None:
            heads = self.pos_embeddings(heads, input_pos=positions)
        return heads.transpose(1, 2)


def head_width(embed_dim: int, num_heads: int) -> int:
    """The width of each head where heads share ``embed_dim``.

    Raises:
        ValueError: they cannot share it evenly.
    """
    if embed_dim % num_heads:
        raise ValueError(
            f"embed_dim must be a multiple of num_heads; got {embed_dim} and {num_heads}"
        )
    return embed_dim // num_heads


def projections(
    embed_dim: int, num_heads: int, num_kv_heads: int, head_dim: int, bias: bool = False
) -> dict[str, nn.Linear]:
    """The four projections of an attention, by torchtune's names."""
    width, kv_width = num_heads * head_dim, num_kv_heads * head_dim
    return {
        "q_proj": nn.Linear(embed_dim, width, bias=bias),
        "k_proj": nn.Linear(embed_dim, kv_width, bias=bias),
        "v_proj": nn.Linear(embed_dim, kv_width, bias=bias),
        "output_proj": nn.Linear(width, embed_dim, bias=bias),
    }


def llama_like(
    attention: Callable[..., MultiHeadAttention],
    rope: nn.Module,
    *,
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    embed_dim: int,
    intermediate_dim: int,
    max_seq_len: int,
    norm_eps: float,
    attn_dropout: float,
    tie_word_embeddings: bool,
) -> TransformerDecoder:
    """Pre-norm blocks (RMSNorm) of an attention and a SwiGLU MLP without biases.

    Args:
        attention: makes the attention of one block, given the arguments of torchtune's.
        rope: the rotary positions that all blocks share.
        vocab_size: number of token ids.
        num_layers: number of blocks.
        num_heads: query heads.
        num_kv_heads: key/value heads; divides ``num_heads``.
        head_dim: width of a head.
        embed_dim: width of the residual stream.
        intermediate_dim: width inside the MLP.
        max_seq_len: longest sequence, in tokens.
        norm_eps: epsilon of every RMSNorm of the residual stream.
        attn_dropout: dropout on attention weights, in [0, 1].
        tie_word_embeddings: the output head is the embedding matrix.

    Returns:
        A decoder with weights N(0, 0.02) from torch's global generator.
    """

    def block() -> TransformerSelfAttentionLayer:
        return TransformerSelfAttentionLayer(
            attn=attention(
                embed_dim=embed_dim,
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                pos_embeddings=rope,
                max_seq_len=max_seq_len,
                attn_dropout=attn_dropout,
                **projections(embed_dim, num_heads, num_kv_heads, head_dim),
            ),
            mlp=FeedForward(
                gate_proj=nn.Linear(embed_dim, intermediate_dim, bias=False),
                down_proj=nn.Linear(intermediate_dim, embed_dim, bias=False),
                up_proj=nn.Linear(embed_dim, intermediate_dim, bias=False),
            ),
            sa_norm=RMSNorm(embed_dim, eps=norm_eps),
            mlp_norm=RMSNorm(embed_dim, eps=norm_eps),
        )

    tok_embeddings = nn.Embedding(vocab_size, embed_dim)
    output = output_head(tok_embeddings, embed_dim, tie_word_embeddings)
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


def output_head(
    tok_embeddings: nn.Embedding, embed_dim: int, tie_word_embeddings: bool
) -> nn.Linear | TiedLinear:
    """The projection to logits: the embedding matrix itself, or one of its own."""
    if tie_word_embeddings:
        return TiedLinear(tok_embeddings)
    return nn.Linear(embed_dim, tok_embeddings.num_embeddings, bias=False)


def is_llama_like(model: nn.Module) -> bool:
    """Whether ``model`` has the shape of :func:`llama_like`, whatever its attention."""
    if not isinstance(model, TransformerDecoder) or not len(model.layers):
        return False
    attention = getattr(model.layers[0], "attn", None)
    mlp = getattr(model.layers[0], "mlp", None)
    return (
        isinstance(attention, MultiHeadAttention)
        and getattr(mlp, "w3", None) is not None
        and isinstance(getattr(mlp, "activation", None), nn.SiLU)
        and isinstance(model.norm, RMSNorm)  # Gemma's is another: it scales by 1 + weight
    )


def llama_like_settings(model: TransformerDecoder) -> dict[str, Any]:
    """The settings that all llama-like Hugging Face configs share, read off the modules."""
    attention, mlp = model.layers[0].attn, model.layers[0].mlp
    vocab_size, embed_dim = model.tok_embeddings.weight.shape
    return {
        "vocab_size": vocab_size,
        "hidden_size": embed_dim,
        "intermediate_size": mlp.w1.weight.shape[0],
        "num_hidden_layers": len(model.layers),
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "max_position_embeddings": model.max_seq_len,
        "rope_theta": float(attention.pos_embeddings.base),
        "rms_norm_eps": model.norm.eps,
        "attention_dropout": attention.attn_dropout,
        "tie_word_embeddings": isinstance(model.output, TiedLinear),
        "hidden_act": "silu",
    }
