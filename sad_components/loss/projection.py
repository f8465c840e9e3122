"""The products with a head: whole, in a fast dtype, into one buffer.

Shape legend: N supervised tokens, C tokens of a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial

from sad_components.loss.hidden import Head


def gathered(head: Head) -> Head:
    """A sharded head whole; each rank's gradient is a part of the sum."""
    bias_V = None if head.bias_V is None else _whole(head.bias_V)
    return replace(head, weight_VD=_whole(head.weight_VD), bias_V=bias_V)


def _whole(part: Tensor) -> Tensor:
    if not isinstance(part, DTensor):
        return part
    return part.full_tensor(grad_placements=[Partial()] * part.device_mesh.ndim)


def product_dtype(weight_VD: Tensor) -> torch.dtype:
    """The dtype of a head's products: its own, or autocast's; fp32 on a CPU slow at 16 bits."""
    device, dtype = weight_VD.device.type, weight_VD.dtype
    if dtype == torch.float32 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if device == "cpu" and dtype.itemsize == 2 and not _cpu_multiplies_bf16():
        return torch.float32
    return dtype


def _cpu_multiplies_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class Buffers:
    """Memory by name, kept from call to call on a CPU, where each fresh page costs a fault.

    On other devices their own allocator does that.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, columns: int, like: Tensor) -> Tensor:
        """Room of shape [rows, columns], of ``like``'s dtype and device; holds anything."""
        kept, size = self._kept.get(name), rows * columns
        fits = kept is not None and kept.numel() >= size
        if kept is None or not fits or (kept.dtype, kept.device) != (like.dtype, like.device):
            with torch.inference_mode(False):  # else training could not write into it later
                kept = torch.empty(size, dtype=like.dtype, device=like.device)
            if kept.device.type == "cpu":
                self._kept[name] = kept
        return kept[:size].view(rows, columns)


class Projection:
    """A head in the dtype that its products run in, with one buffer for a chunk of logits."""

    def __init__(self, hidden_ND: Tensor, head: Head, dtype: torch.dtype) -> None:
        self.head, self._hidden_ND = head, hidden_ND.detach()
        self.weight_VD = head.weight_VD.detach().to(dtype)
        self._bias_V = None if head.bias_V is None else head.bias_V.detach().to(dtype)
        self._buffer_CV: Tensor | None = None

    def reserve(self, chunk: int, buffers: Buffers, name: str) -> None:
        """Takes the buffer, for chunks of at most this many tokens."""
        vocab = self.weight_VD.shape[0]
        self._buffer_CV = buffers.take(name, chunk, vocab, self.weight_VD)

    def rows(self, rows: slice) -> Tensor:
        """Hidden states [C, D] in the dtype of the products."""
        return self._hidden_ND[rows].to(self.weight_VD.dtype)

    def logits(self, rows: slice) -> Tensor:
        """``scale * (hidden @ weight.T + bias)`` before any soft-cap, shape [C, V]; a buffer."""
        assert self._buffer_CV is not None
        out, scale = self._buffer_CV[: rows.stop - rows.start], self.head.scale
        hidden_CD, weight_DV = self.rows(rows), self.weight_VD.t()
        if self._bias_V is None:
            torch.mm(hidden_CD if scale == 1.0 else hidden_CD * scale, weight_DV, out=out)
        else:
            torch.addmm(self._bias_V, hidden_CD, weight_DV, beta=scale, alpha=scale, out=out)
        return out
