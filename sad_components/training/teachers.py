"""Where the teacher's distributions come from: one interface, so that a loss need not know."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from sad_components.data.batch import Batch
from sad_components.loss import HiddenRows
from sad_components.models.hidden import head_of, stop_at_hidden, vocab_size_of


class Teacher(Protocol):
    """Gives a loss the teacher's view of a batch's supervised tokens."""

    def rows(self, batch: Batch, chosen_BS: Tensor) -> HiddenRows:
        """Teacher rows for the positions where ``chosen_BS`` is true, in reading order."""
        ...


class LiveTeacher:
    """A frozen model that runs beside the student.

    Args:
        model: a torchtune decoder; put into eval mode, without gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        model.eval().requires_grad_(False)
        self.vocab_size = vocab_size_of(model)
        self.model = stop_at_hidden(model)
        self.head = head_of(model)

    def cut_vocab(self, size: int) -> None:
        """Leaves out ids from ``size`` on (padding of the embedding)."""
        self.head = head_of(self.model, size)

    @torch.no_grad()
    def rows(self, batch: Batch, chosen_BS: Tensor) -> HiddenRows:
        return HiddenRows(self.model(batch.tokens_BS)[chosen_BS], self.head)
