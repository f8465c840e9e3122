"""The line on memory that a recipe prints before it builds its models."""

from __future__ import annotations

import os
from functools import partial

import torch
from omegaconf import DictConfig

from sad_components.data import Batching, DataReport, MixtureReport, StepOrder
from sad_components.loss import StructuredKDLoss
from sad_components.models.hidden import vocab_size_of
from sad_components.training.config import build
from sad_components.training.memory import (
    RunShape,
    available_bytes,
    base_bytes,
    estimate,
    first_steps,
    largest_step,
    memory_lines,
)
from sad_components.training.meta_models import on_meta
from sad_components.training.sharding import Sharding
from sad_components.training.teacher_precision import teacher_on_meta

Report = DataReport | MixtureReport


def memory_preflight(
    cfg: DictConfig,
    loss: StructuredKDLoss,
    order: StepOrder,
    batching: Batching,
    reports: tuple[Report, Report | None],
    dtype: torch.dtype,
    device: torch.device,
    world: int = 1,
) -> list[str]:
    """What a process is estimated to need against what there is; a warning if that is less.

    Never raises: where there is no estimate (a builder that cannot run on the meta device), the
    line says why. A mistake in the config is the recipe's to report, when it builds the models.

    Args:
        cfg: of recipe structured_kd.
        loss: built from it.
        order: which rows each step reads.
        batching: how they become micro-batches.
        reports: of the training data, and of the held-out rows if there are any.
        dtype: of the models.
        device: where they will lie.
        world: processes, over all machines.
    """
    try:
        supervised, tokens = _tokens(reports[0], loss)
        student = on_meta(cfg.student, "student", dtype)
        teacher = teacher_on_meta(cfg.get("teacher"), cfg.get("teacher_precision"), dtype)
        run = RunShape(
            step=largest_step(batching, first_steps(order), supervised / tokens, world),
            heldout_tokens=0 if reports[1] is None else _tokens(reports[1], loss)[0],
            vocab=min(vocab_size_of(m) for m in (student, teacher) if m is not None),
            checkpointed=bool(cfg.get("activation_checkpointing")),
            **Sharding.read(cfg, world, device).ranks,
        )
        optimizer = partial(build, cfg.optimizer, "optimizer")
        found = estimate(student, teacher, loss, optimizer, run, device, base_bytes(device))
        here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        return memory_lines(found, available_bytes(device, here))
    except Exception as error:  # builders and optimizers are anybody's code
        reason = " ".join(str(error).split()) or type(error).__name__
        return [f"memory: not estimated ({reason:.120})"]


def _tokens(report: Report, loss: StructuredKDLoss) -> tuple[int, int]:
    """Tokens that the loss reads, and all of them."""
    tokens = report.to_dict()["tokens"]
    chosen = sum(tokens.get(kind.label, 0) for kind in loss.spec.by_kind)
    return chosen, max(1, sum(tokens.values()))
