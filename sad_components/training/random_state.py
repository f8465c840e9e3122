"""Random states of all processes, so that a resumed run draws what it would have drawn."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


def random_states(device: torch.device) -> list[dict[str, Any]]:
    """Each rank's states of torch (CPU, and ``device`` if it is CUDA), numpy and Python.

    Plain containers and tensors. Every rank must call it.
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
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy(), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def _random_state(device: torch.device) -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [kind, torch.from_numpy(keys.copy()), *rest],
        "python": [version, list(internal), gauss],
    }
