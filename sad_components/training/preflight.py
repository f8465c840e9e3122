"""What a recipe says before it builds its models: memory, time, and data that teach little."""

from __future__ import annotations

import os
from functools import partial

import torch
from omegaconf import DictConfig

from sad_components.data import (
    Batching,
    DataReport,
    MixtureReport,
    OffsetTokenizer,
    StepOrder,
)
from sad_components.loss import StructuredKDLoss
from sad_components.models.hidden import vocab_size_of
from sad_components.training.config import build
from sad_components.training.epoch_time import epoch_time
from sad_components.training.memory import (
    RunShape,
    available_bytes,
    estimate,
    first_steps,
    largest_step,
    memory_lines,
)
from sad_components.training.meta_models import folder_of, on_meta
from sad_components.training.teacher_precision import teacher_on_meta
from sad_components.training.vocabulary import other_templates

Report = DataReport | MixtureReport

#: Below this share of supervised tokens, or above that of cut rows, a run is warned.
_LEAST_SUPERVISED, _MOST_CUT = 0.02, 0.25


def coverage_warnings(supervised: float, cut: int, rows: int) -> list[str]:
    """For people: what is wrong with the share of a data set that a loss can learn from.

    Args:
        supervised: share of the tokens that the loss reads, in [0, 1].
        cut: rows that ``max_seq_len`` shortened.
        rows: of all.
    """
    lines = []
    if supervised < _LEAST_SUPERVISED:
        lines.append(
            f"only {supervised:.1%} of the tokens are supervised: does the format fit the data "
            "(sad spans)?"
        )
    if cut > _MOST_CUT * rows:
        lines.append(f"{cut} of {rows} rows are cut: raise transform.max_seq_len if memory allows")
    return lines


def preflight(
    cfg: DictConfig,
    tokenizer: OffsetTokenizer,
    loss: StructuredKDLoss,
    order: StepOrder,
    batching: Batching,
    reports: tuple[Report, Report | None],
    dtype: torch.dtype,
    device: torch.device,
    world: int = 1,
) -> list[str]:
    """What ``sad doctor`` finds about memory, time, templates and data, in few lines.

    A process is estimated to need so much against what there is (a warning if that is less), and
    an epoch to take at least so long. Never raises: where there is no estimate (a builder that
    cannot run on the meta device), the line says why. A mistake in the config is the recipe's to
    report, when it builds the models.

    Args:
        cfg: of recipe structured_kd.
        tokenizer: built from it.
        loss: built from it.
        order: which rows each step reads.
        batching: how they become micro-batches.
        reports: of the training data, and of the held-out rows if there are any.
        dtype: of the models.
        device: where they will lie.
        world: processes, over all machines.
    """
    supervised, tokens = _tokens(reports[0], loss)
    cut, rows = (reports[0].to_dict()[name] for name in ("truncated", "kept"))
    warnings = coverage_warnings(supervised / tokens, cut, rows)
    if (cfg.get("transform") or {}).get("style", "chat") == "chat":
        folders = [folder_of(cfg.get(name)) for name in ("student", "teacher")]
        warnings += other_templates(tokenizer, folders)
    lines = [f"warning: {line}" for line in warnings]
    try:
        student = on_meta(cfg.student, "student", dtype)
        teacher = teacher_on_meta(cfg.get("teacher"), cfg.get("teacher_precision"), dtype)
        step = largest_step(batching, first_steps(order), supervised / tokens, world)
        heldout = 0 if reports[1] is None else _tokens(reports[1], loss)[0]
        vocab = min(vocab_size_of(m) for m in (student, teacher) if m is not None)
        run = RunShape.read(cfg, step, heldout, vocab, dtype, device, world)
        optimizer = partial(build, cfg.optimizer, "optimizer")
        found = estimate(student, teacher, loss, optimizer, run, device)
        here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        time = epoch_time(student, teacher, tokens, supervised / tokens, device, world)
        lines += memory_lines(found, available_bytes(device, here))
        return [*lines, f"time: {time.describe(order.steps_per_epoch)}"]
    except Exception as error:  # builders and optimizers are anybody's code
        reason = " ".join(str(error).split()) or type(error).__name__
        return [*lines, f"memory: not estimated ({reason:.120})"]


def _tokens(report: Report, loss: StructuredKDLoss) -> tuple[int, int]:
    """Tokens that the loss reads, and all of them."""
    tokens = report.to_dict()["tokens"]
    chosen = sum(tokens.get(kind.label, 0) for kind in loss.spec.by_kind)
    return chosen, max(1, sum(tokens.values()))
