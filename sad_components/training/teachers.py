"""Where the teacher's distributions come from: one interface, so that a loss need not know."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sad_components.data.batch import Batch
from sad_components.data.tokenizers import OffsetTokenizer
from sad_components.data.transform import TokenizedTrajectory
from sad_components.loss import Head, HiddenRows, LossSpec, TopKRows
from sad_components.models.hidden import (
    head_of,
    num_parameters,
    stop_at_hidden,
    vocab_size_of,
)
from sad_components.models.last_layer import hidden_at


class Teacher(ABC):
    """Gives a loss the teacher's view of a batch's supervised tokens.

    Attributes:
        vocab_size: token ids that it gives a probability to.
        kl_note: how a KL against it is to be read, if it is not the exact one.
        num_parameters: of its model; None if only what it said is known.
    """

    vocab_size: int
    num_parameters: int | None = None
    kl_note: str | None = None

    @abstractmethod
    def rows(self, batch: Batch, chosen_BS: Tensor) -> HiddenRows | TopKRows:
        """Teacher rows for the positions where ``chosen_BS`` is true, in reading order."""

    @abstractmethod
    def cut_vocab(self, size: int) -> None:
        """Leaves out ids from ``size`` on (padding of the embedding)."""

    @abstractmethod
    def check(
        self, spec: LossSpec, tokenizer: OffsetTokenizer, rows: Sequence[TokenizedTrajectory]
    ) -> None:
        """Raises ``ValueError`` if it cannot serve this loss on these rows: called at start."""

    def entropies(self, rows: Sequence[TokenizedTrajectory]) -> list[float | None]:
        """Its mean entropy on each row's supervised tokens, nats per token.

        None where that is not known before training: everywhere, for a model that runs live.
        """
        return [None] * len(rows)

    @abstractmethod
    def prefetch(self, rows: Sequence[TokenizedTrajectory]) -> None:
        """Says which rows will be asked for next."""


class LiveTeacher(Teacher):
    """A frozen model that runs beside the student.

    Args:
        model: a torchtune decoder; put into eval mode, without gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        model.eval().requires_grad_(False)
        self.vocab_size = self._cut = vocab_size_of(model)
        self.model = stop_at_hidden(model)
        self.num_parameters = num_parameters(model)

    @property
    def head(self) -> Head:
        """Its output projection; of a sharded teacher whole after a forward pass only."""
        return head_of(self.model, self._cut)

    def cut_vocab(self, size: int) -> None:
        self._cut = size

    def check(
        self, spec: LossSpec, tokenizer: OffsetTokenizer, rows: Sequence[TokenizedTrajectory]
    ) -> None:
        """A model serves every loss on every row."""

    def prefetch(self, rows: Sequence[TokenizedTrajectory]) -> None:
        """Nothing to read: the model computes."""

    @torch.no_grad()
    def rows(self, batch: Batch, chosen_BS: Tensor) -> HiddenRows:
        hidden_ND = hidden_at(self.model, batch.tokens_BS, chosen_BS, **batch.attention)
        return HiddenRows(hidden_ND, self.head)


def as_teacher(component: Any) -> Teacher | None:
    """A config's ``teacher``: a model runs live, a :class:`Teacher` is one already; None stays."""
    return LiveTeacher(component) if isinstance(component, nn.Module) else component
