"""What a run says about itself: speed, memory and versions."""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

_PACKAGES = ("torchtune-sad", "torch", "torchtune", "torchao", "transformers", "datasets")
#: Of a training step. ``student``: its forward pass and the backward pass, the loss's share in
#: which is small for the fused loss (it computes its gradients forward).
PARTS = ("data", "teacher", "student", "loss", "optimizer")


def versions() -> dict[str, str]:
    """Versions of Python, the packages that matter and the hardware."""
    out = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            out[package] = "not installed"
    out["threads"] = str(torch.get_num_threads())
    out["cpu"] = torch.backends.cpu.get_cpu_capability()
    return out


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MB: allocated on the device, or the process's resident set on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


class Throughput:
    """Tokens per second over all processes and the seconds of a step's parts in this one.

    No part waits for a device: on CUDA it is timed by events, which are read with the figures,
    and tells how long the device took or waited for it.

    Args:
        device: whose memory is reported.
        reduce: sums a tensor over ranks, in place.

    Attributes:
        votes: how many ranks said ``vote=True`` in the last call of :meth:`rates`.
    """

    def __init__(
        self, device: torch.device, reduce: Callable[[Tensor], Tensor] = lambda value: value
    ) -> None:
        self.device = device
        self.tokens = self.supervised = 0
        self.seconds = 0.0
        self.votes = 0
        self.parts = dict.fromkeys(PARTS, 0.0)
        self._reduce = reduce
        self._last = time.perf_counter()
        self._timed: list[tuple[str, Any, Any]] = []
        self._forget_counts()

    def _forget_counts(self) -> None:
        self._tokens = 0
        self._supervised = torch.zeros((), dtype=torch.float64, device=self.device)

    def add(self, tokens: int, supervised: Tensor) -> None:
        """Counts one micro-batch: ``supervised`` is a scalar on the device."""
        self._tokens += tokens
        self._supervised += supervised

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Times what runs inside as ``part``, one of :data:`PARTS`."""
        begun = self._now()
        yield
        self._timed.append((part, begun, self._now()))

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, begun: Any, ended: Any) -> float:
        if self.device.type != "cuda":
            return ended - begun
        ended.synchronize()
        return begun.elapsed_time(ended) / 1000

    def pause(self) -> None:
        """Leaves out the time since the last report (evaluation, saving)."""
        self._last = time.perf_counter()

    def rates(self, *, vote: bool = False) -> dict[str, float]:
        """Figures since the last call; every rank must call it.

        Args:
            vote: counted over ranks in the same exchange, so that they can agree without another.

        Returns:
            Tokens/s and supervised tokens/s of all ranks together; this rank's peak memory in MB
            and its seconds, as a whole and for each part (``seconds_teacher``, ..).
        """
        parts = dict.fromkeys(PARTS, 0.0)
        for part, begun, ended in self._timed:
            parts[part] += self._between(begun, ended)
        plain = [torch.full_like(self._supervised, number) for number in (self._tokens, vote)]
        counts = self._reduce(torch.stack([self._supervised, *plain]))
        supervised, tokens, self.votes = (int(count) for count in counts.tolist())
        now = time.perf_counter()
        seconds = max(now - self._last, 1e-9)
        self._last = now
        self._timed.clear()
        self._forget_counts()
        self.tokens += tokens
        self.supervised += supervised
        self.seconds += seconds
        for part, value in parts.items():
            self.parts[part] += value
        return {
            "tokens_per_s": tokens / seconds,
            "supervised_tokens_per_s": supervised / seconds,
            "peak_memory_mb": peak_memory_mb(self.device),
            "seconds": seconds,
            **{f"seconds_{part}": value for part, value in parts.items()},
        }

    def totals(self) -> dict[str, Any]:
        """Over all steps, evaluation and saving left out: tokens of all ranks.

        ``time_shares`` says how this rank's seconds divide; the rest is what no part covers.
        """
        seconds = max(self.seconds, 1e-9)
        shares = {part: value / seconds for part, value in self.parts.items()}
        return {
            "tokens": self.tokens,
            "supervised_tokens": self.supervised,
            "train_seconds": self.seconds,
            "tokens_per_s": self.tokens / seconds,
            "supervised_tokens_per_s": self.supervised / seconds,
            "peak_memory_mb": peak_memory_mb(self.device),
            "time_shares": {**shares, "rest": max(0.0, 1 - sum(shares.values()))},
        }
