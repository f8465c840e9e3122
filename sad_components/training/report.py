"""What a run says about itself: speed, memory and versions."""

from __future__ import annotations

import platform
import resource
import sys
import time
from importlib.metadata import PackageNotFoundError, version

import torch

_PACKAGES = ("torchtune-sad", "torch", "torchtune", "torchao", "transformers", "datasets")


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
    """Tokens per second of this process, since the last report and in total.

    Args:
        device: whose memory is reported.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.tokens = self.supervised = 0
        self.seconds = 0.0
        self._last = time.perf_counter()
        self._mark = (0, 0)

    def add(self, tokens: int, supervised: int) -> None:
        """Counts one micro-batch."""
        self.tokens += tokens
        self.supervised += supervised

    def pause(self) -> None:
        """Leaves out the time since the last report (evaluation, saving)."""
        self._last = time.perf_counter()

    def rates(self) -> dict[str, float]:
        """Tokens/s and supervised tokens/s since the last call, and peak memory in MB."""
        now = time.perf_counter()
        seconds = max(now - self._last, 1e-9)
        tokens = self.tokens - self._mark[0]
        supervised = self.supervised - self._mark[1]
        self.seconds += seconds
        self._last, self._mark = now, (self.tokens, self.supervised)
        return {
            "tokens_per_s": tokens / seconds,
            "supervised_tokens_per_s": supervised / seconds,
            "peak_memory_mb": peak_memory_mb(self.device),
        }

    def totals(self) -> dict[str, float]:
        """Over all steps of this process, evaluation and saving left out."""
        seconds = max(self.seconds, 1e-9)
        return {
            "tokens": self.tokens,
            "supervised_tokens": self.supervised,
            "train_seconds": self.seconds,
            "tokens_per_s": self.tokens / seconds,
            "supervised_tokens_per_s": self.supervised / seconds,
            "peak_memory_mb": peak_memory_mb(self.device),
        }
