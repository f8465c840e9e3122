"""How long an epoch takes at least: its matrix products at the speed that they have here."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torchtune.modules import TransformerDecoder

from sad_components.models.hidden import head_of, num_parameters
from sad_components.models.lora import trained_parameters

_PROBE_WIDTH, _PROBE_SECONDS = 1024, 0.1


@dataclass(frozen=True)
class EpochTime:
    """A lower bound: attention, elementwise work, the optimizer and scores come on top.

    Args:
        flops: of the matrix products of an epoch (docs/method.md, section 8), over all processes.
        rate: FLOPs per second of a product on one process.
        processes: that share them.
    """

    flops: float
    rate: float
    processes: int

    @property
    def seconds(self) -> float:
        """Of an epoch."""
        return self.flops / (self.rate * self.processes)

    def describe(self, steps: int) -> str:
        """For people: a line on an epoch of ``steps`` steps."""
        share = f" on each of {self.processes} processes" if self.processes > 1 else ""
        speed = f"{self.rate / 1e9:,.0f} GFLOP/s measured here{share}"
        return (
            f"at least {_duration(self.seconds)} an epoch ({steps} steps, {self.flops:.2g} FLOPs "
            f"at {speed}); attention, optimizer and scores come on top"
        )


def epoch_time(
    student: TransformerDecoder,
    teacher: TransformerDecoder | None,
    tokens: int,
    supervised: float,
    device: torch.device,
    processes: int = 1,
) -> EpochTime:
    """The time of an epoch's matrix products; takes a tenth of a second to measure their speed.

    Args:
        student: on the meta device, in the run's dtype.
        teacher: likewise; None without a live one.
        tokens: of the training data.
        supervised: share of them that the loss reads.
        device: where the products run.
        processes: that share the work.
    """
    trained = sum(p.numel() for p in trained_parameters(student).values())
    passes = 2 + trained / num_parameters(student)  # forward, backward to inputs, and to weights
    flops = passes * _flops(student, tokens, supervised)
    if teacher is not None:
        flops += _flops(teacher, tokens, supervised)
    return EpochTime(flops, product_rate(next(student.parameters()).dtype, device), processes)


def _flops(model: TransformerDecoder, tokens: int, supervised: float) -> float:
    """Of a forward pass: layers on every token, the head on supervised ones."""
    head = head_of(model).weight_VD.numel()
    embeddings = model.tok_embeddings.weight.numel()
    tied = head_of(model).weight_VD is model.tok_embeddings.weight
    layers = num_parameters(model) - embeddings - (0 if tied else head)
    return 2.0 * tokens * (layers + supervised * head)


def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOPs per second of a matrix product, measured for a tenth of a second."""
    a = torch.ones(_PROBE_WIDTH, _PROBE_WIDTH, dtype=dtype, device=device)
    torch.mm(a, a)
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < _PROBE_SECONDS:
        float(torch.mm(a, a)[0, 0])
        count += 1
    return count * 2 * _PROBE_WIDTH**3 / elapsed


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
