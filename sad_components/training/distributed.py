"""One process or several: ranks, sums over ranks, and the end of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchao.dtypes.nf4tensor import NF4Tensor
from torchtune import training


def start(device: torch.device) -> tuple[int, int]:
    """Joins the process group that ``tune run --nproc_per_node N`` prepared; ``(rank, world)``.

    gloo on CPU; on CUDA nccl, and gloo for what lies in the CPU's memory.
    Without torchrun's variables nothing is started: ``(0, 1)``.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return 0, 1
    if not dist.is_initialized():
        on_gpu = device.type != "cpu"  # models that are spread lie in the CPU's memory before
        backend = training.get_distributed_backend(device.type, offload_ops_to_cpu=on_gpu)
        dist.init_process_group(backend, timeout=timedelta(minutes=10))
    return dist.get_rank(), dist.get_world_size()


def stop() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_ranks(value: Tensor) -> Tensor:
    """``value`` summed over ranks, in place; itself when there is one rank."""
    if dist.is_initialized():
        dist.all_reduce(value, op=dist.ReduceOp.SUM)
    return value


def same_start(parameters: Iterable[nn.Parameter]) -> None:
    """Gives every rank the first one's values, in place.

    NF4 weights stay: they cannot be sent, and come from one folder or one seed anyway.
    """
    if dist.is_initialized():
        for parameter in parameters:
            if not isinstance(parameter, NF4Tensor):
                dist.broadcast(parameter.data, src=0)


def most_over_ranks(value: int, device: torch.device) -> int:
    """The largest ``value`` of all ranks."""
    if not dist.is_initialized():
        return value
    largest = torch.tensor(value, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sums every parameter's gradient over ranks; a rank without one contributes 0.

    Sums, not means: the loss is already divided by the whole step's token counts.
    """
    if not dist.is_initialized():
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad, op=dist.ReduceOp.SUM)


def barrier() -> None:
    """Waits for all ranks."""
    if dist.is_initialized():
        dist.barrier()
