"""How much each layer, head, neuron and channel of a teacher does on given rows.

Shape legend: S positions of a row, N chosen positions, L layers, H heads, d width of a head,
F neurons of an MLP, D channels of the residual stream, M norms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchtune.modules import TransformerDecoder

from sad_components.data.batch import Batch, collate
from sad_components.data.transform import TokenizedTrajectory
from sad_components.loss import LossSpec, SpanLoss
from sad_components.pruning.parts import at_rest

#: What "agent" tokens are: every REASON and ACT token.
_AGENT = LossSpec(reason=SpanLoss(), act=SpanLoss(), branch="own")
#: Which tokens count: those whose prediction a structured loss reads, or all.
TOKENS = ("agent", "all")


@dataclass(frozen=True)
class Rows:
    """Rows to measure on, and which of their positions count.

    Args:
        rows: tokenised trajectories, at least one.
        tokens: ``agent``: positions that predict a REASON or ACT token; ``all``: every position.
        pad_id: of the tokenizer.

    Raises:
        ValueError: no row, or another word for ``tokens``.
    """

    rows: Sequence[TokenizedTrajectory]
    tokens: str = "agent"
    pad_id: int = 0

    def __post_init__(self) -> None:
        if self.tokens not in TOKENS:
            raise ValueError(f"tokens must be one of {TOKENS}; got {self.tokens!r}")
        if not self.rows:
            raise ValueError("importance is measured on at least one row; got none")

    def batches(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Ids int64 [1, S] and chosen positions bool [1, S] of one row after another."""
        for row in self.rows:
            batch = collate([row], self.pad_id).to(device)
            yield batch.tokens_BS, self._chosen(batch)

    def _chosen(self, batch: Batch) -> Tensor:
        if self.tokens == "all":
            return torch.ones_like(batch.tokens_BS, dtype=torch.bool)
        return _AGENT.supervised(batch.span_ids_BS, batch.branch_BS)


@dataclass(frozen=True)
class Importance:
    """What :func:`measure` found; float32 tensors on the CPU.

    Args:
        influence: of each layer [L]: 1 - mean cosine(input, output), so 0 for a layer that
            changes no direction.
        heads: of each layer's query heads [L, H].
        neurons: of each layer's MLP [L, F].
        channels: of the residual stream, over all its norms [D].
        energy: for each of those norms by name, the share of each channel in the sum of squares
            of its input, on average [D]; sums to 1.
        num_tokens: positions measured.
    """

    influence: Tensor
    heads: Tensor
    neurons: Tensor
    channels: Tensor
    energy: dict[str, Tensor]
    num_tokens: int


@torch.no_grad()
def measure(model: TransformerDecoder, rows: Rows) -> Importance:
    """Importances from one forward pass over ``rows``.

    A unit's importance is its magnitude, averaged over the chosen positions of a row, then as L2
    norm over rows (one of the aggregations that Minitron, arXiv 2407.14679, compares). Magnitudes:

    - a head: the norm of what it adds to the residual stream, its output times its part of the
      output projection;
    - a neuron: its absolute activation, times the norm of its column of the down projection;
    - a channel: the absolute output of each norm, summed over all norms.

    (ours) Minitron takes the first two in front of the projection. Behind it, a unit that nothing
    reads has importance 0, also where heads share their values.

    Args:
        model: a decoder of any family of ``sad_components.models``; as it was afterwards.
        rows: what to run it on.
    """
    meters = _Meters(model, norms_of(model))
    with at_rest(model), _hooked(meters.hooks()):
        for tokens_BS, chosen_BS in rows.batches(next(model.parameters()).device):
            meters.start_row(chosen_BS)
            model(tokens_BS)
    return meters.result()


def norms_of(model: TransformerDecoder) -> dict[str, nn.Module]:
    """The norms that read the whole residual stream, by name."""
    width = model.layers[0].attn.embed_dim
    norms = {}
    for name, module in model.named_modules():
        weight = getattr(module, "scale", getattr(module, "weight", None))
        in_a_head = ".attn." in name
        if isinstance(weight, Tensor) and weight.shape == (width,) and not in_a_head:
            norms[name] = module
    return norms


class _Meters:
    """Running sums behind an :class:`Importance`, filled by forward hooks."""

    def __init__(self, model: TransformerDecoder, norms: dict[str, nn.Module]) -> None:
        self.layers, self.norms = list(model.layers), norms
        self.num_tokens = 0
        self.chosen_BS: Tensor | None = None
        self.cosines = [0.0] * len(self.layers)
        self.squares: dict[tuple[str, int], Tensor] = {}
        self.channels: dict[str, Tensor] = {}
        self.energy = dict.fromkeys(norms, torch.zeros(()))
        self.grams = [_gram(layer.attn) for layer in self.layers]
        self.down_norms = [layer.mlp.w2.weight.float().norm(dim=0) for layer in self.layers]

    def hooks(self) -> Iterator[RemovableHandle]:
        for index, layer in enumerate(self.layers):
            yield layer.register_forward_hook(self._on_layer(index))
            yield layer.attn.output_proj.register_forward_pre_hook(self._on_heads(index))
            yield layer.mlp.w2.register_forward_pre_hook(self._on_neurons(index))
        for name, norm in self.norms.items():
            yield norm.register_forward_hook(self._on_norm(name))

    def start_row(self, chosen_BS: Tensor) -> None:
        self._end_row()
        self.chosen_BS = chosen_BS
        self.num_tokens += int(chosen_BS.sum())

    def result(self) -> Importance:
        self._end_row()
        layers = range(len(self.layers))
        energy = {name: (share / self.num_tokens).float() for name, share in self.energy.items()}
        return Importance(
            influence=torch.tensor([1 - total / self.num_tokens for total in self.cosines]),
            heads=torch.stack([self.squares["heads", i].sqrt().cpu() for i in layers]),
            neurons=torch.stack([self.squares["neurons", i].sqrt().cpu() for i in layers]),
            channels=self.squares["channels", 0].sqrt().cpu(),
            energy={name: share.cpu() for name, share in energy.items()},
            num_tokens=self.num_tokens,
        )

    def _end_row(self) -> None:
        """The row's channels count once all norms have said theirs."""
        if self.channels:
            self._add("channels", 0, torch.stack(list(self.channels.values())).sum(0))
        self.channels = {}

    def _chosen(self, hidden_BSD: Tensor) -> Tensor:
        return hidden_BSD[self.chosen_BS].float()

    def _add(self, unit: str, layer: int, mean_U: Tensor) -> None:
        self.squares[unit, layer] = self.squares.get((unit, layer), 0) + mean_U.square()

    def _on_layer(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            pair = self._chosen(args[0]).double(), self._chosen(output).double()
            self.cosines[index] += float(torch.cosine_similarity(*pair, dim=-1).sum())

        return hook

    def _on_heads(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            gram_Hdd = self.grams[index]
            heads_NHd = self._chosen(args[0]).unflatten(-1, gram_Hdd.shape[:2])
            squared_NH = torch.einsum("nhd,hde,nhe->nh", heads_NHd, gram_Hdd, heads_NHd)
            self._add("heads", index, squared_NH.clamp(min=0).sqrt().mean(0))

        return hook

    def _on_neurons(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._add(
                "neurons", index, self._chosen(args[0]).abs().mean(0) * self.down_norms[index]
            )

        return hook

    def _on_norm(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.channels[name] = self._chosen(output).abs().mean(0)
            squared_ND = self._chosen(args[0]).double().square()
            shares_ND = squared_ND / squared_ND.sum(-1, keepdim=True).clamp(min=1e-300)
            self.energy[name] = self.energy[name] + shares_ND.sum(0)

        return hook


def _gram(attention: nn.Module) -> Tensor:
    """W^T W of each head's part of the output projection, float32 [H, d, d]."""
    weight_DHd = attention.output_proj.weight.float().unflatten(-1, (-1, attention.head_dim))
    return torch.einsum("ohd,ohe->hde", weight_DHd, weight_DHd)


@contextmanager
def _hooked(handles: Iterator[Any]) -> Iterator[None]:
    kept = list(handles)
    try:
        yield
    finally:
        for handle in kept:
            handle.remove()
