"""Devices and dtypes by the names that configs use."""

from __future__ import annotations

from pathlib import Path

import torch
from torchtune import utils

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


def resolve_device(name: str | None) -> torch.device:
    """The device of this process: of the kind asked for, or an error (torchtune takes the CPU).

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1``, ..; None for the best there is.

    Raises:
        ValueError: no such device here.
    """
    try:
        device = utils.get_device(name)
        found = name is None or device.type == torch.device(name).type
    except RuntimeError as error:
        raise ValueError(f"device {name!r} cannot be used: {error}") from error
    if not found:
        raise ValueError(
            f"device {name!r} is not there for torch {torch.__version__}; use device: {device.type}"
        )
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bf16 where the device has units for it, else fp32.

    On a CPU without bf16 units (AMX or AVX512-BF16 on x86) a bf16 product is several times
    slower than an fp32 one.

    Args:
        name: ``auto``, ``bf16``, ``fp32`` or ``fp64``.
        device: where the model runs.

    Raises:
        ValueError: another name.
    """
    if name == "auto":
        return torch.bfloat16 if _fast_bf16(device) else torch.float32
    if name not in _DTYPES:
        raise ValueError(f"dtype is auto, {', '.join(_DTYPES)}; got {name!r}")
    return _DTYPES[name]


def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        cpuinfo = Path("/proc/cpuinfo")
        flags = cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""
        return any(f in flags for f in ("amx_bf16", "avx512_bf16", "bf16 "))
    return False
