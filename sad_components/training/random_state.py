"""Random states of all processes, so that a resumed run draws what it would have drawn."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


def random_states(device: torch.device) -> list[dict[str, Any]]:
    """Each rank's states of torch (CPU, and ``device`` if it is CUDA), numpy and Python.

    Plain containers of numbers. Every rank must call it.
    """
    mine = _random_state(device)
    if not dist.is_initialized():
        return [mine]
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, mine)
    return states


def set_random_state(states: list[dict[str, Any]], rank: int, device: torch.device) -> None:
    """Puts back the state of ``rank``; a rank that there was not keeps the state it has."""
    if rank >= len(states):
        return
    state = states[rank]
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8), device)
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def _random_state(device: torch.device) -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    cuda = torch.cuda.get_rng_state(device).tolist() if device.type == "cuda" else None
    return {
        "torch": torch.get_rng_state().tolist(),
        "cuda": cuda,
        "numpy": [kind, keys.tolist(), *rest],
        "python": [version, list(internal), gauss],
    }
