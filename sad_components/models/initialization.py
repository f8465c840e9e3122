"""Random initialisation that depends on a seed alone, not on device or dtype."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchtune.modules import TransformerDecoder

#: Matrices whose output is added to the residual stream, in torchtune's names.
_RESIDUAL_WRITERS = ("attn.output_proj.weight", "mlp.w2.weight")


@torch.no_grad()
def init_weights(model: nn.Module, seed: int | None = None, std: float | None = 0.02) -> nn.Module:
    """``model`` with matrices drawn from N(0, std), norm scales one, biases zero; in place.

    The numbers are drawn on the CPU in fp32 and then cast, so that one seed gives one model on
    every device and in every dtype. torch's own default, N(0, 1) for an embedding, makes the
    logits of a model with tied embeddings start at a scale of sqrt(dim).

    Args:
        model: any decoder; parameters on the meta device are left alone.
        seed: seed of a generator of its own; ``None`` draws from torch's global one.
        std: standard deviation of the normal distribution, > 0. ``None`` takes
            1 / sqrt(inputs) for each matrix, and that divided by sqrt(2 layers) for those that
            write to the residual stream. At a width of 2,500 that is the usual 0.02; narrower
            matrices start larger.

    Returns:
        The same ``model``.
    """
    generator = None if seed is None else torch.Generator(device="cpu").manual_seed(seed)
    writers = max(1, sum(name.endswith(_RESIDUAL_WRITERS) for name, _ in model.named_parameters()))
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            continue
        if parameter.dim() >= 2:
            noise = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
            spread = 1 / math.sqrt(parameter.shape[-1]) if std is None else std
            if std is None and name.endswith(_RESIDUAL_WRITERS):
                spread /= math.sqrt(writers)
            parameter.copy_(noise.normal_(0.0, spread, generator=generator))
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.fill_(1.0)
    return model


#: Rotations by less than this per token leave two equal tokens alike up to some 80 tokens apart.
_SLOW = 0.02
#: Attention logit of what a head of :func:`init_copying_` looks for; other pairs are near 0.
_MATCH_LOGIT = 10.0
#: Size of each pair of the biases of the head that looks at the token before.
_POSITION_BIAS = 6.0
#: Share of each head's usual size that queries and keys keep where they are to play no part.
_FAINT = 0.1
#: What other outputs start at, as a share of :func:`init_weights`'s: tokens stay recognisable.
_QUIET = 0.1


@torch.no_grad()
def init_copying_(model: TransformerDecoder, seed: int | None = None) -> TransformerDecoder:
    """``model`` with heads that look things up in the text from the first step; in place.

    A small model that is trained on little text takes long to find out that equal tokens belong
    together, and learns it name by name. Here that is built in: the first head looks one token
    back and writes down what stands there; in the layers above, half of the heads look for places
    behind a token like the present one and copy what stands there (an induction head, Olsson et
    al. 2022, arXiv 2209.11895), and one looks for tokens like the present one. Queries that equal
    keys are mimetic initialisation's (Trockman and Kolter 2023, arXiv 2305.09828); positions by
    biases, slow rotations and the sizes are ours. Everything stays trainable.

    Args:
        model: a decoder on the CPU, initialised by :func:`init_weights` with ``std=None``, with
            rotary positions and biases on queries and keys (``model_type: qwen2``).
        seed: see :func:`init_weights`.

    Returns:
        The same ``model``.

    Raises:
        ValueError: no such biases or rotations, or fewer than two layers.
    """
    generator = None if seed is None else torch.Generator(device="cpu").manual_seed(seed)
    first = model.layers[0].attn
    base = getattr(first.pos_embeddings, "base", None)
    has_biases = first.q_proj.bias is not None and first.k_proj.bias is not None
    if base is None or not has_biases or len(model.layers) < 2:
        raise ValueError(
            "init: copying needs two layers or more, rotary positions, and biases on queries and "
            "keys, which this decoder has not; use model_type: qwen2, or leave init out"
        )
    half = first.head_dim // 2
    theta = base ** (-torch.arange(half, dtype=torch.float32) / half)
    if not (theta < _SLOW).any():
        raise ValueError(
            f"init: copying needs rotations slower than {_SLOW} per token; a head of "
            f"{first.head_dim} dimensions has none at rope_theta {base}. Raise either"
        )
    for layer in model.layers:
        layer.attn.output_proj.weight.mul_(_QUIET)
        layer.mlp.w2.weight.mul_(_QUIET)
    width = first.q_proj.weight.shape[1]
    shape = (first.head_dim, width)
    # A token's own features, and the place where those of the token before are written.
    own, before = (torch.randn(shape, generator=generator) / math.sqrt(width) for _ in range(2))
    _look_back_(first, theta, own, before, generator)
    slow = (theta < _SLOW).repeat(2)
    for layer in list(model.layers)[1:]:
        heads = layer.attn.num_kv_heads
        for head in range(max(1, heads // 2)):
            _look_up_(layer.attn, head, slow, own, before)
        if heads > 2:
            _look_up_(layer.attn, heads // 2, slow, own, own)
    return model


def _look_back_(
    attention: nn.Module,
    theta: Tensor,
    own: Tensor,
    before: Tensor,
    generator: torch.Generator | None,
) -> None:
    """The first head attends to the token before, by biases alone, and writes down what it is."""
    dim = attention.head_dim
    phase = 2 * math.pi * torch.rand(len(theta), generator=generator)
    for head in range(_group(attention)):
        _position_(attention.q_proj, _rows(head, dim), phase - theta)
        attention.output_proj.weight[:, _rows(head, dim)] = before.T / math.sqrt(dim)
    _position_(attention.k_proj, _rows(0, dim), phase)
    attention.v_proj.weight[_rows(0, dim)] = own / _group(attention)


def _position_(projection: nn.Module, rows: slice, angle: Tensor) -> None:
    projection.weight[rows].mul_(_FAINT)
    projection.bias[rows] = _POSITION_BIAS * torch.cat([angle.cos(), angle.sin()])


def _look_up_(attention: nn.Module, head: int, slow: Tensor, query: Tensor, key: Tensor) -> None:
    """A head that attends where ``key``'s features are what ``query``'s are here, and copies."""
    dim, width = attention.head_dim, attention.k_proj.weight.shape[1]
    # Both features make up half of a normalised state's squares.
    unit = int(slow.sum()) * math.sqrt(width) / (2 * dim)
    scale = torch.where(slow, math.sqrt(_MATCH_LOGIT / unit), 0.0)[:, None]
    keys, group = _rows(head, dim), _group(attention)
    for number in range(group):
        rows = _rows(head * group + number, dim)
        weight = attention.q_proj.weight[rows]
        attention.q_proj.weight[rows] = scale * query + torch.where(
            slow[:, None], 0, weight * _FAINT
        )
        values = attention.v_proj.weight[keys]
        attention.output_proj.weight[:, rows] = values.T * math.sqrt(2 / dim) / group
    weight = attention.k_proj.weight[keys]
    attention.k_proj.weight[keys] = scale * key + torch.where(slow[:, None], 0, weight * _FAINT)


def _group(attention: nn.Module) -> int:
    """How many query heads share a head of keys and values."""
    return attention.num_heads // attention.num_kv_heads


def _rows(head: int, dim: int) -> slice:
    return slice(head * dim, (head + 1) * dim)
