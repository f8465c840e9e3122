"""The structured loss from hidden states, a chunk of logits at a time, gradients in one pass.

Shape legend: N supervised tokens, C tokens of a chunk, n tokens of a tile, D width, V vocabulary.

The forward pass projects a chunk, turns its logits into their own gradient in place, and
multiplies that into the gradients of hidden states and head; the backward pass only scales them.
So there are four matrix products per chunk and never more than a chunk of logits. Between the
products the chunk is worked on in tiles that stay in the CPU's cache. Nothing in the loop waits
for a device; only kinds that are learnt in different ways cost one wait, for their sizes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sad_components.loss.hidden import Head, HiddenRows
from sad_components.loss.projection import Buffers, Projection, gathered, product_dtype
from sad_components.loss.spec import NUM_KINDS, LossSpec, SpanLoss
from sad_components.loss.structured import LossOutput, StructuredKDLoss, check_shapes, kind_sums
from sad_components.loss.teacher_rows import TopKRows
from sad_components.loss.tiles import METRICS, Workspace, dense_tile, top_k_tile

_MIB = 2**20
#: Logits of one chunk, student's and teacher's: larger is no faster, smaller re-reads the heads.
_CHUNK_BYTES = {"cpu": 192 * _MIB}
_CHUNK_BYTES_ELSEWHERE = 512 * _MIB
#: Logits of one tile: a few of them fit a shared cache; elsewhere a tile only bounds memory.
_TILE_BYTES = {"cpu": 3 * _MIB}
_TILE_BYTES_ELSEWHERE = 64 * _MIB


class FusedStructuredKDLoss(StructuredKDLoss):
    """:class:`StructuredKDLoss`, equal in value and gradient, near the cost of its four products.

    Give it hidden states (:meth:`from_hidden`); called on logits it is the plain loss. On a CPU it
    keeps the room for a chunk's logits (at most 192 MiB) from one call to the next.

    Args:
        chunk_tokens: tokens projected at a time; None chooses (see :meth:`chunk_size`).
        **options: as for :class:`StructuredKDLoss`.

    Raises:
        ValueError: as for :class:`StructuredKDLoss`, or a chunk without tokens.

    Example:
        >>> loss, kinds = FusedStructuredKDLoss(), torch.tensor([1, 2])
        >>> rows = HiddenRows(torch.randn(2, 4), Head(torch.randn(5, 4)))
        >>> counts, targets = loss.spec.count(kinds), torch.tensor([3, 4])
        >>> bool(loss.from_hidden(rows, rows, targets, kinds, counts=counts).loss.abs() < 1e-6)
        True
    """

    def __init__(self, *args: Any, chunk_tokens: int | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        if chunk_tokens is not None and chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be at least 1, or null; got {chunk_tokens}")
        self.chunk_tokens = chunk_tokens
        self._room = Buffers()

    def extra_repr(self) -> str:
        """States the chunk size, or the memory that it is chosen from."""
        if self.chunk_tokens is not None:
            return f"chunk_tokens={self.chunk_tokens}"
        sizes = {d: chunk_bytes(torch.device(d)) // _MIB for d in ("cpu", "cuda")}
        return f"chunk_tokens=auto ({sizes['cpu']} MiB of logits on CPU, {sizes['cuda']} on CUDA)"

    def chunk_size(self, vocab_size: int, dtype: torch.dtype, device: torch.device) -> int:
        """Tokens whose logits exist at a time: the student's, and the teacher's of half of them.

        Args:
            vocab_size: columns of the logits.
            dtype: of the logits.
            device: where they lie; its memory bounds the choice.
        """
        if self.chunk_tokens is not None:
            return self.chunk_tokens
        # The chunk's logits of the student, and half of it of the teacher.
        return max(1, 2 * chunk_bytes(device) // (3 * vocab_size * dtype.itemsize))

    @torch.compiler.disable
    def from_hidden(
        self,
        student: HiddenRows,
        teacher: HiddenRows | TopKRows | None,
        targets_N: Tensor,
        span_ids_N: Tensor,
        branch_N: Tensor | None = None,
        *,
        counts: Tensor,
        weights_N: Tensor | None = None,
    ) -> LossOutput:
        """As :meth:`StructuredKDLoss.from_hidden`; gradients are ready when this returns.

        A backward pass may run twice only under ``retain_graph``, and has no second derivative.
        """
        self.check_teacher(teacher)
        kinds_N = self.spec.kinds(span_ids_N, branch_N)
        coefficients_N = self.spec.scales(counts)[kinds_N.long()]
        if weights_N is not None:
            coefficients_N = coefficients_N * weights_N.detach().double()
        order, segments = _segments(self.spec, kinds_N)
        hidden_ND = student.hidden_ND
        if order is not None:
            hidden_ND, kinds_N, targets_N = hidden_ND[order], kinds_N[order], targets_N[order]
            coefficients_N = coefficients_N[order]
        head = gathered(student.head)
        work = _Work(
            head=head,
            dtype=product_dtype(head.weight_VD),
            teacher=_teacher_rows(teacher, order),
            targets_N=targets_N,
            coefficients_N=coefficients_N,
            segments=segments,
            wants_gradient=torch.is_grad_enabled(),
            buffers=self._room,
        )
        if work.teacher is not None and isinstance(work.teacher, HiddenRows):
            vocabularies = head.weight_VD.shape[0], work.teacher.head.weight_VD.shape[0]
            check_shapes(*(torch.Size((len(targets_N), v)) for v in vocabularies))
        work.chunk = self.chunk_size(head.weight_VD.shape[0], work.dtype, hidden_ND.device)
        loss, metrics_MN = _FusedLoss.apply(hidden_ND, head.weight_VD, head.bias_V, work)
        return LossOutput(loss, _sums(self.spec, metrics_MN, kinds_N, work.metrics))


@dataclass
class _Work:
    """What one call computes; rows are in the order of their segments."""

    head: Head
    dtype: torch.dtype
    teacher: HiddenRows | TopKRows | None
    targets_N: Tensor
    coefficients_N: Tensor
    segments: list[tuple[SpanLoss, int, int]]
    wants_gradient: bool
    buffers: Buffers
    chunk: int = 0

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that this teacher gives."""
        if self.teacher is None:
            return ["ce"]
        if isinstance(self.teacher, TopKRows) and 1.0 not in self.teacher.log_masses:
            return ["ce", "agree"]
        return list(METRICS)

    def chunks(self) -> Iterator[tuple[SpanLoss, slice]]:
        """Rows of one way of learning, at most ``chunk`` at a time, nearly equal in number."""
        for spec, start, stop in self.segments:
            for rows in _split(slice(start, stop), self.chunk):
                yield spec, rows


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, work: _Work
    ) -> tuple[Tensor, Tensor]:
        wants = [work.wants_gradient and need for need in ctx.needs_input_grad[:3]]
        with torch.autocast(hidden_ND.device.type, enabled=False):
            state = _ChunkLoop(hidden_ND, weight_VD, bias_V, work, wants)
            for spec, rows in work.chunks():
                state.step(spec, rows)
            loss, metrics_MN = state.result()
        ctx.save_for_backward(state.unit, *state.gradients())
        ctx.mark_non_differentiable(metrics_MN)
        return loss, metrics_MN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        unit, *gradients = ctx.saved_tensors
        factor = upstream * unit
        if factor.device.type == "cpu" and factor == 1:
            return (*gradients, None)
        # The saved gradients are handed on, not copied, unless another backward will read them.
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        scale = torch.mul if keep else Tensor.mul_
        return (*(None if g is None else scale(g, factor.to(g.dtype)) for g in gradients), None)


class _ChunkLoop:
    """Buffers of one forward pass, and what it has summed so far."""

    def __init__(
        self,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        work: _Work,
        wants: list[bool],
    ) -> None:
        self.work, self.wants_hidden, self.wants_weight, self.wants_bias = work, *wants
        self.hidden_ND, self.weight_VD, self.bias_V = hidden_ND, weight_VD, bias_V
        self.student = Projection(hidden_ND, replace(work.head, weight_VD=weight_VD), work.dtype)
        self.teacher = None
        if isinstance(work.teacher, HiddenRows):
            dtype = product_dtype(work.teacher.head.weight_VD)
            self.teacher = Projection(work.teacher.hidden_ND, work.teacher.head, dtype)
        n, v = hidden_ND.shape[0], weight_VD.shape[0]
        device, self.wide = hidden_ND.device, torch.promote_types(work.dtype, torch.float32)
        largest_rows = max((rows for _, rows in work.chunks()), key=_length, default=slice(0, 0))
        chunk = _length(largest_rows)
        tile = max(1, tile_bytes(device) // (v * self.wide.itemsize))
        self.workspace = Workspace(min(tile, chunk), v, self.wide, device)
        self.student.reserve(chunk, work.buffers, "student")
        if self.teacher is not None:
            self.teacher.reserve(self._part(largest_rows), work.buffers, "teacher")
        # Low precision: the largest coefficient is taken out, and put back in the backward pass.
        dtypes = (work.dtype, weight_VD.dtype, hidden_ND.dtype)
        low = any(dtype.itemsize < 4 for dtype in dtypes)
        largest = work.coefficients_N.abs().amax() if low and n else None
        one = torch.ones((), dtype=torch.float64, device=device)
        self.unit = one if largest is None else torch.where(largest > 0, largest, one)
        self.relative_N = (work.coefficients_N / self.unit).to(self.wide)
        self.values_N = torch.zeros(n, dtype=self.wide, device=device)
        self.metrics_MN = torch.zeros(len(work.metrics), n, dtype=self.wide, device=device)
        self.grad_hidden = torch.zeros_like(hidden_ND) if self.wants_hidden else None
        self.grad_bias = torch.zeros(v, dtype=self.wide, device=device) if self.wants_bias else None
        self.grad_weight: Tensor | None = None

    def step(self, spec: SpanLoss, rows: slice) -> None:
        """One chunk: projects, reduces, and adds its share to the gradients."""
        wants = self.wants_hidden or self.wants_weight or self.wants_bias
        logits_CV = self.student.logits(rows)
        for part in _split(rows, self._part(rows)):
            teacher_CV = None if self.teacher is None else self.teacher.logits(part)
            for tile in _split(part, self.workspace.rows):
                student_nV = logits_CV[tile.start - rows.start : tile.stop - rows.start]
                teacher_nV = None
                if teacher_CV is not None:
                    teacher_nV = teacher_CV[tile.start - part.start : tile.stop - part.start]
                self._reduce(spec, tile, student_nV, teacher_nV, wants)
        if wants:
            self._accumulate(rows, logits_CV)

    def _part(self, rows: slice) -> int:
        """Rows of a chunk whose teacher logits exist at a time: half of them.

        The student's are needed together, for the gradients; the teacher's are not.
        """
        return max(1, -(-_length(rows) // 2))

    def _reduce(
        self,
        spec: SpanLoss,
        rows: slice,
        projected_nV: Tensor,
        teacher_nV: Tensor | None,
        wants: bool,
    ) -> None:
        """One tile: its values and metrics; ``projected_nV`` becomes its gradient."""
        head, space, teacher = self.work.head, self.workspace, self.work.teacher
        student_nV = space.load("student", projected_nV, head)
        targets_n = self.work.targets_N[rows]
        if isinstance(teacher, TopKRows):
            result = top_k_tile(spec, student_nV, teacher[rows], targets_n, space, wants)
        else:
            if teacher is not None and teacher_nV is not None:
                teacher_nV = space.load("teacher", teacher_nV, teacher.head)
            result = dense_tile(spec, student_nV, teacher_nV, targets_n, space, wants)
        self.values_N[rows] = result.value_n
        for i, name in enumerate(self.work.metrics):
            self.metrics_MN[i, rows] = result.metrics[name]
        if wants:
            space.store_gradient(student_nV, projected_nV, head)

    def _accumulate(self, rows: slice, gradient_CV: Tensor) -> None:
        """``gradient_CV``: of the loss with respect to the projection, without coefficients."""
        relative_C1 = self.relative_N[rows, None] * self.work.head.scale
        if self.grad_hidden is not None:
            product_CD = torch.mm(gradient_CV, self.student.weight_VD)
            torch.mul(product_CD, relative_C1, out=self.grad_hidden[rows])
        if self.wants_weight:
            weighted_CD = (self.student.rows(rows) * relative_C1).to(gradient_CV.dtype)
            self._add_to_weight(gradient_CV.t(), weighted_CD)
        if self.grad_bias is not None:
            share_C = relative_C1.squeeze(1).to(gradient_CV.dtype)
            self.grad_bias += torch.mv(gradient_CV.t(), share_C)

    def _add_to_weight(self, gradient_VC: Tensor, weighted_CD: Tensor) -> None:
        """Sums in fp32 (or wider), in place where the product itself is that wide."""
        if self.grad_weight is None:
            self.grad_weight = torch.mm(gradient_VC, weighted_CD).to(self.wide)
        elif gradient_VC.dtype == self.wide:
            self.grad_weight.addmm_(gradient_VC, weighted_CD)
        else:
            self.grad_weight += torch.mm(gradient_VC, weighted_CD)

    def result(self) -> tuple[Tensor, Tensor]:
        """Loss, scalar, and metrics [M, N]."""
        loss = (self.work.coefficients_N * self.values_N.double()).sum()
        return loss.to(self.wide), self.metrics_MN

    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of hidden states, weight and bias, in their dtypes, divided by ``unit``."""
        weight = self.grad_weight
        if self.wants_weight:
            weight = torch.zeros_like(self.weight_VD) if weight is None else weight
            weight = weight.to(self.weight_VD.dtype)
        bias = self.grad_bias
        if bias is not None and self.bias_V is not None:
            bias = bias.to(self.bias_V.dtype)
        return self.grad_hidden, weight, bias


def _length(rows: slice) -> int:
    return rows.stop - rows.start


def _split(rows: slice, largest: int) -> Iterator[slice]:
    """Stretches of at most ``largest`` rows, nearly equal in number."""
    parts = -(-_length(rows) // largest)
    edges = [rows.start + _length(rows) * i // max(parts, 1) for i in range(parts + 1)]
    return (slice(*edge) for edge in pairwise(edges))


def _segments(
    spec: LossSpec, kinds_N: Tensor
) -> tuple[Tensor | None, list[tuple[SpanLoss, int, int]]]:
    """Rows grouped by the way they are learnt: an order, and stretches of it.

    One way for all kinds, their weights apart: no order, one stretch, no wait for the device.
    """
    ways: list[SpanLoss] = []
    way_of_kind = [-1] * NUM_KINDS
    for kind, loss in spec.by_kind.items():
        way = _way(loss)
        if way not in ways:
            ways.append(way)
        way_of_kind[kind] = ways.index(way)
    if len(ways) == 1:
        return None, [(ways[0], 0, len(kinds_N))]
    last = len(ways)  # unsupervised rows go behind the others, and are cut off
    table = torch.tensor([last if w < 0 else w for w in way_of_kind], device=kinds_N.device)
    ways_N = table[kinds_N.long()]
    sizes = torch.bincount(ways_N, minlength=last + 1)[:last].tolist()
    order = ways_N.argsort(stable=True)[: sum(sizes)]
    segments, start = [], 0
    for way, size in zip(ways, sizes, strict=True):
        segments.append((way, start, start + size))
        start += size
    return order, segments


def _way(loss: SpanLoss) -> SpanLoss:
    """The same loss without what the coefficients hold and the divergence does not read."""
    plain = SpanLoss()
    unread = {name: getattr(plain, name) for name in ("beta", "alpha")} | loss.parameters
    if loss.divergence is None:
        unread["temperature"] = 1.0
    return replace(loss, weight=1.0 if loss.weight > 0 else 0.0, **unread)


def _teacher_rows(
    teacher: HiddenRows | TopKRows | None, order: Tensor | None
) -> HiddenRows | TopKRows | None:
    if isinstance(teacher, TopKRows):
        return teacher if order is None else teacher[order]
    if teacher is None:
        return None
    hidden_ND = teacher.hidden_ND.detach()
    head = gathered(teacher.head)
    return HiddenRows(hidden_ND if order is None else hidden_ND[order], head)


def chunk_bytes(device: torch.device) -> int:
    """Memory for a chunk's logits: fixed per machine, so that a resumed run sums alike."""
    if device.type == "cuda" and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(device).total_memory
    else:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(_CHUNK_BYTES.get(device.type, _CHUNK_BYTES_ELSEWHERE), total // 32)


def tile_bytes(device: torch.device) -> int:
    """Memory for a tile's logits."""
    return _TILE_BYTES.get(device.type, _TILE_BYTES_ELSEWHERE)


def _sums(
    spec: LossSpec, metrics_MN: Tensor, kinds_N: Tensor, names: list[str]
) -> dict[str, Tensor]:
    supervised_N = spec.supervised(kinds_N)
    kinds_N = kinds_N.long()
    sums = {
        name: kind_sums(row.masked_fill(~supervised_N, 0.0), kinds_N)
        for name, row in zip(names, metrics_MN, strict=True)
    }
    return {**sums, "count": kind_sums(supervised_N, kinds_N)}
