"""Hidden states with the head that turns them into logits: what losses take from a model.

Shape legend: N supervised tokens, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear


@dataclass
class Head:
    """An output projection: ``softcap(scale * (hidden @ weight.T + bias))``.

    Args:
        weight_VD: projection, shape [V, D]; a tied one is the embedding itself.
        bias_V: optional, shape [V].
        scale: logit multiplier.
        softcap: ``c`` in ``c * tanh(logits / c)``; None for none.
        vocab_size: logits at and beyond it are cut off (padding of the embedding); None: V.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        if self.vocab_size is not None and self.vocab_size < self.weight_VD.shape[0]:
            self.weight_VD = self.weight_VD[: self.vocab_size]
            self.bias_V = None if self.bias_V is None else self.bias_V[: self.vocab_size]

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits in the head's dtype, shape [N, V]."""
        logits = linear(hidden_ND.to(self.weight_VD.dtype), self.weight_VD, self.bias_V)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


@dataclass
class HiddenRows:
    """Last hidden states (after the final norm) of the tokens a loss reads, and their head.

    Args:
        hidden_ND: shape [N, D].
        head: turns them into logits.
    """

    hidden_ND: Tensor
    head: Head

    def logits(self) -> Tensor:
        """All logits at once, shape [N, V]."""
        return self.head.logits(self.hidden_ND)
