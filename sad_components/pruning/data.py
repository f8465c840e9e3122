"""Rows to measure a teacher on, chosen at random out of trajectories."""

from __future__ import annotations

from pathlib import Path

import torch

from sad_components.data import HFTokenizer, SpanTokenizer, TrajectoryDataset
from sad_components.models.checkpoint import load_hf_config
from sad_components.pruning.importance import Rows


def random_rows(
    teacher_dir: str | Path,
    source: str,
    number: int,
    *,
    tokens: str = "agent",
    style: str = "chat",
    max_seq_len: int = 1024,
    tokenizer_dir: str | Path | None = None,
    seed: int = 0,
) -> Rows:
    """``number`` rows of ``source`` (or all, where there are fewer), as the teacher reads them.

    Args:
        teacher_dir: folder in Hugging Face format.
        source: as of :class:`~sad_components.data.TrajectoryDataset`.
        number: rows, >= 1.
        tokens: see :class:`~sad_components.pruning.importance.Rows`.
        style: ``chat`` or ``plain``.
        max_seq_len: longer rows are cut at a step boundary.
        tokenizer_dir: where the tokenizer is; None: in ``teacher_dir``.
        seed: of the choice.

    Raises:
        ValueError: the tokenizer has ids that the teacher has no embedding for, or an option is
            none of its choices.
        FileNotFoundError: no tokenizer or no data there.
    """
    tokenizer = HFTokenizer(str(tokenizer_dir or teacher_dir))
    vocab_size = load_hf_config(teacher_dir).get("vocab_size", 0)
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the teacher's vocabulary has {vocab_size} ids, its tokenizer {tokenizer.vocab_size}: "
            "pass the tokenizer it was trained with (--tokenizer)"
        )
    transform = SpanTokenizer(tokenizer, style=style, max_seq_len=max_seq_len)
    found = TrajectoryDataset(source, transform).rows
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(found), generator=generator)[:number].tolist()
    return Rows([found[i] for i in chosen], tokens, tokenizer.pad_id)
