"""How many bytes a training step of a decoder keeps alive, found on the meta device.

Nothing is computed: one and two layers of the decoder run on tensors without content, while every
new storage is counted until it is freed; all layers cost alike, so the rest is arithmetic.

Shape legend: B rows, S positions, D width.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchao.dtypes.nf4tensor import NF4Tensor
from torchtune.modules import TransformerDecoder
from torchtune.modules.peft import set_trainable_params

from sad_components.models.hidden import stop_at_hidden
from sad_components.models.last_layer import WORTHWHILE, saves_at
from sad_components.models.lora import trained_parameters


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside the block and still alive.

    Attributes:
        now: bytes alive.
        peak: the most that were alive at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._sizes and storage._cdata not in before:
                self._sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata)
                self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        return out

    def _freed(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class StepShape:
    """The largest forward pass of a run.

    Args:
        rows: sequences side by side.
        width: positions of each, padding included.
        supervised: positions whose hidden states the loss reads.
        packed: whether sequences hold several rows, which takes an attention mask.
    """

    rows: int
    width: int
    supervised: int
    packed: bool = False

    @property
    def positions(self) -> int:
        """Of all sequences."""
        return self.rows * self.width


@dataclass(frozen=True)
class StepBytes:
    """Bytes of a decoder's step, without parameters, gradients and the loss.

    Args:
        saved: what the forward pass keeps for the backward pass.
        forward: the most that a forward pass without gradients needs.
        transient: what a layer's backward pass needs beside ``saved`` and gradients.
    """

    saved: int
    forward: int
    transient: int


def step_bytes(
    model: TransformerDecoder, shape: StepShape, *, train: bool = True, checkpointed: bool = False
) -> StepBytes:
    """What a step of ``model`` keeps alive.

    Args:
        model: on the meta device, of the parameters' dtype; left as it was, but in train or
            eval mode, and with gradients where training makes them (adapters alone, if any).
        shape: of the forward pass.
        train: whether there is a backward pass.
        checkpointed: whether layers keep their input alone, and run again in the backward pass.
    """
    stop_at_hidden(model).train(train)
    set_trainable_params(model, trained_parameters(model) if train else {})
    _build_rotary_tables(model)
    layers = model.layers
    measured = {}
    for depth in (1, 2):
        with _first_layers(model, min(depth, len(layers))):
            measured[depth] = _measure(model, shape, train)
    one, two = measured[1], measured[2]
    share = shape.supervised / shape.positions
    last = share if share <= WORTHWHILE and saves_at(model) != "nothing" else 1.0
    per_layer = two.saved - one.saved
    if checkpointed:
        weight_VD = model.tok_embeddings.weight
        kept = shape.positions * weight_VD.shape[1] * weight_VD.dtype.itemsize
        return StepBytes(
            saved=one.saved - per_layer + kept * len(layers),
            forward=two.forward,
            transient=per_layer + two.transient + _unpacking_bytes(model),
        )
    return StepBytes(
        saved=int(one.saved + per_layer * (len(layers) - 2 + last)),
        forward=two.forward,
        transient=two.transient + _unpacking_bytes(model),
    )


def _unpacking_bytes(model: nn.Module) -> int:
    """What it takes to make the largest NF4 weight a plain one: its operators hide it."""
    packed = [p for p in model.parameters() if isinstance(p, NF4Tensor)]
    with LiveBytes() as live:
        if packed:
            max(packed, key=Tensor.numel).get_original_weight()
    return live.peak


def _build_rotary_tables(model: nn.Module) -> None:
    """Llama 3's scaled positions leave out their table on the meta device, and then refuse."""
    for module in model.modules():
        if getattr(module, "is_cache_built", True) is False:
            with torch.device("cpu"):
                module.rope_init()
            module.to("meta")


@contextmanager
def _first_layers(model: TransformerDecoder, depth: int) -> Iterator[None]:
    layers = model.layers
    model.layers = nn.ModuleList(list(layers)[:depth])
    try:
        yield
    finally:
        model.layers = layers


def _measure(model: TransformerDecoder, shape: StepShape, train: bool) -> StepBytes:
    size = (shape.rows, shape.width)
    tokens_BS = torch.zeros(size, dtype=torch.int64, device="meta")
    attention: dict[str, Any] = {}
    if shape.packed:
        mask = torch.ones((*size, shape.width), dtype=torch.bool, device="meta")
        attention = {"mask": mask, "input_pos": tokens_BS}
    with LiveBytes() as live, FusedAttention(), torch.set_grad_enabled(train):
        hidden_BSD = model(tokens_BS, **attention)
        saved, forward, transient = live.now, live.peak, 0
        if train:
            live.peak = live.now
            hidden_BSD.backward(torch.zeros_like(hidden_BSD))
            transient = live.peak - max(saved, live.now)
    model.zero_grad(set_to_none=True)
    return StepBytes(saved=saved, forward=forward, transient=transient)


class FusedAttention(TorchFunctionMode):
    """Attention keeps what fused kernels keep: no scores [S, S], unless there is dropout on CPU.

    On the meta device torch itself would choose the kernel that writes the scores out.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and not kwargs.get("dropout_p"):
            names = ("query", "key", "value")
            given = dict(zip(names, args), **kwargs)
            return _FusedAttention.apply(*(given[name] for name in names))
        return func(*args, **kwargs)


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty((*q.shape[:-1], v.shape[-1]))
        sums = q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, _, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
