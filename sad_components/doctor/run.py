"""Memory and time of a run, and what would make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torchao.dtypes.nf4tensor import NF4Tensor
from torchtune.modules import TransformerDecoder

from sad_components.data import Batching, StepOrder
from sad_components.data.dataset import RowDataset
from sad_components.models.hidden import vocab_size_of
from sad_components.models.lora import adapters_of
from sad_components.training.config import build
from sad_components.training.epoch_time import epoch_time
from sad_components.training.live_bytes import StepShape
from sad_components.training.memory import (
    MemoryEstimate,
    RunShape,
    available_bytes,
    estimate,
    first_steps,
    gigabytes,
    largest_step,
)

#: Where the data cannot be read: the agent's share of tokens, and rows as long as allowed.
_ASSUMED_SHARE, _ASSUMED_LENGTH = 0.5, 2048
#: Share of a 16-bit weight that NF4 does not need.
_NF4_SAVES = 0.74


@dataclass
class DataFacts:
    """What a run will read.

    Args:
        rows: the training data.
        supervised: share of its tokens that the loss reads.
        heldout_tokens: supervised tokens of the held-out rows.
    """

    rows: RowDataset
    supervised: float
    heldout_tokens: int


def check_run(
    cfg: DictConfig,
    student: TransformerDecoder,
    teacher: TransformerDecoder | None,
    data: DataFacts | None,
    device: torch.device,
    memory: int | None,
    processes: int = 1,
) -> Iterator[tuple[str, str, list[str], dict[str, Any]]]:
    """Findings (name, mark, lines, figures) on memory and on time.

    Args:
        cfg: the config of recipe structured_kd.
        student: on the meta device.
        teacher: on the meta device; None without a live one.
        data: None where it cannot be read: rows are then taken to be as long as allowed.
        device: that the config names.
        memory: bytes per process; None: what ``device`` has here.
        processes: of the run, on one machine.
    """
    found = estimated(cfg, student, teacher, data, device, processes)
    available = available_bytes(device, processes) if memory is None else memory
    fits = available is None or found.total <= available
    against = "" if available is None else f", {gigabytes(available)} available"
    lines = [f"about {gigabytes(found.total)} per process at the {found.moment}{against}"]
    parts = sorted(found.parts.items(), key=lambda part: -part[1])
    lines += [f"  {name}: {gigabytes(size)}" for name, size in parts if size > 0]
    if data is None:
        lines.append("  taken: rows as long as allowed, half of their tokens supervised")
    if not fits:
        smaller = OmegaConf.merge(cfg, {"activation_checkpointing": True})
        checkpointed = estimated(smaller, student, teacher, data, device, processes)
        helping = switches(cfg, found, checkpointed, student, device, processes)
        lines += [f"  would help: {switch}" for switch in helping]
    figures = {"total": found.total, "available": available, **found.parts}
    yield "memory", "ok" if fits else "fail", lines, figures
    if data is not None and (device.type == "cpu" or torch.cuda.is_available()):
        tokens = int(data.rows.lengths.sum())
        time = epoch_time(student, teacher, tokens, data.supervised, device, processes)
        steps = _order(cfg, data, processes).steps_per_epoch
        figures = {"seconds_per_epoch": time.seconds, "flops": time.flops}
        yield "time", "ok", [time.describe(steps)], {**figures, "flops_per_second": time.rate}


def estimated(
    cfg: DictConfig,
    student: TransformerDecoder,
    teacher: TransformerDecoder | None,
    data: DataFacts | None,
    device: torch.device,
    processes: int = 1,
) -> MemoryEstimate:
    """Memory of a process; arguments as for :func:`check_run`."""
    models = [m for m in (student, teacher) if m is not None]
    step = _largest_step(cfg, data, processes)
    heldout = 0 if data is None else data.heldout_tokens
    vocab = min(vocab_size_of(m) for m in models)
    dtype = next(student.parameters()).dtype
    run = RunShape.read(cfg, step, heldout, vocab, dtype, device, processes)
    loss, optimizer = build(cfg.loss, "loss"), partial(build, cfg.optimizer, "optimizer")
    return estimate(student, teacher, loss, optimizer, run, device)


def switches(
    cfg: DictConfig,
    found: MemoryEstimate,
    checkpointed: MemoryEstimate,
    student: TransformerDecoder,
    device: torch.device,
    processes: int,
) -> list[str]:
    """What would make a run smaller, the largest saving first.

    Args:
        cfg: the config.
        found: its estimate.
        checkpointed: the estimate with activation checkpointing.
        student: on the meta device.
        device: that the config names.
        processes: of the run.
    """
    part = found.parts
    options = []
    if cfg.get("batch_size", 1) > 1 or cfg.get("max_tokens_per_batch"):
        saving = (part.get("activations", 0) + part.get("logits", 0)) // 2
        options.append((saving, "halve batch_size or max_tokens_per_batch (and accumulate more)"))
    else:
        saving = part.get("activations", 0) // 2
        options.append((saving, "halve transform.max_seq_len"))
    options.append((found.total - checkpointed.total, "activation_checkpointing: true"))
    if part.get("teacher weights"):
        cached = part["teacher weights"] + part.get("teacher rows", 0)
        options.append((cached, "write the teacher down first: recipes/cache_teacher.py"))
        if cfg.get("teacher_precision") is None and processes == 1:
            saving = int(part["teacher weights"] * _NF4_SAVES)
            options.append((saving, "teacher_precision: nf4"))
    if next(student.parameters()).dtype == torch.float32:
        options.append(((found.total - part["process"]) // 2, "dtype: bf16"))
    options.append(
        (part.get("optimizer state", 0) // 2, "an optimizer with less state (8 bits, SGD)")
    )
    options += _adapter_switches(found, student)
    own = sum(part.get(k, 0) for k in ("student weights", "gradients", "optimizer state"))
    if device.type == "cuda":
        shared = own + part.get("teacher weights", 0)
        if processes == 1:
            options.append((shared // 2, "two GPUs instead of one: tune run --nproc_per_node 2"))
        elif not cfg.get("fsdp_cpu_offload"):
            options.append((shared, "fsdp_cpu_offload: true"))
        if not cfg.get("activation_offloading"):
            options.append((part.get("activations", 0) // 2, "activation_offloading: true"))
    options.append((own // 2, "a student with half the layers (sad prune, cut_student)"))
    ranked = sorted(options, key=lambda option: -option[0])
    return [f"{what} (saves about {gigabytes(saving)})" for saving, what in ranked if saving > 0]


def _adapter_switches(found: MemoryEstimate, student: TransformerDecoder) -> list[tuple[int, str]]:
    """What adapters would save, or a base in NF4 under them."""
    part, adapters = found.parts, adapters_of(student)
    if not adapters:
        saving = part.get("optimizer state", 0) + part.get("gradients", 0)
        return [(saving, "adapters instead of all weights (lora_from_pretrained)")]
    plain = [m.weight.nbytes for m in adapters.values() if not isinstance(m.weight, NF4Tensor)]
    return [(int(sum(plain) * _NF4_SAVES), "student.quantize_base: true")]


def _largest_step(cfg: DictConfig, data: DataFacts | None, processes: int) -> StepShape:
    rows, packing = cfg.get("batch_size", 1), bool(cfg.get("packing", False))
    limit = cfg.get("max_tokens_per_batch")
    if data is None:
        longest = (cfg.get("transform") or {}).get("max_seq_len") or _ASSUMED_LENGTH
        rows = rows if limit is None else max(1, limit // longest)
        return StepShape(rows, longest, max(1, int(rows * longest * _ASSUMED_SHARE)), packing)
    order = _order(cfg, data, processes)
    batching = Batching(data.rows.lengths, rows, max_tokens=limit, packing=packing)
    return largest_step(batching, first_steps(order), data.supervised, processes)


def _order(cfg: DictConfig, data: DataFacts, processes: int) -> StepOrder:
    per_step = cfg.get("batch_size", 1) * cfg.get("gradient_accumulation_steps", 1) * processes
    mixture = {"groups": data.rows.groups, "weights": data.rows.weights}
    return StepOrder(data.rows.lengths, per_step, cfg.get("seed", 0), **mixture)
