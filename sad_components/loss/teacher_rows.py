"""A teacher that was written down: top-k log-probabilities with the mass of all other tokens.

Shape legend: N supervised tokens, V vocabulary, K tokens kept; K + 1 buckets, the last the tail.

A divergence over the K + 1 buckets is a true one between two distributions: never above the
exact divergence (data processing inequality), and equal to it when the tail holds one token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class TopKRows:
    """What a cached teacher says about each token.

    Args:
        ids_NK: the kept tokens, distinct, the teacher's first choice in column 0, int64.
        log_masses: temperature -> log-probabilities of the buckets, shape [N, K + 1], finite;
            the last column is the log of the mass of all tokens that were not kept.

    Raises:
        ValueError: shapes that do not fit together.

    Example:
        >>> rows = TopKRows.from_logits(torch.randn(3, 9), k=2, temperatures=(1.0, 2.0))
        >>> rows.ids_NK.shape, rows.at(2.0).shape
        (torch.Size([3, 2]), torch.Size([3, 3]))
    """

    ids_NK: Tensor
    log_masses: dict[float, Tensor]

    def __post_init__(self) -> None:
        n, k = self.ids_NK.shape
        for temperature, masses in self.log_masses.items():
            if masses.shape != (n, k + 1):
                raise ValueError(
                    f"log_masses hold k + 1 buckets a token, [{n}, {k + 1}]; got "
                    f"{list(masses.shape)} at temperature {temperature}"
                )

    def at(self, temperature: float) -> Tensor:
        """Log masses at a temperature, shape [N, K + 1].

        Raises:
            ValueError: nothing is stored for it; what is stored is named.
        """
        if temperature not in self.log_masses:
            stored = ", ".join(map(str, sorted(self.log_masses))) or "none"
            raise ValueError(
                f"the stored teacher has no probabilities at temperature {temperature} (stored: "
                f"{stored}); cache them with that temperature, or use one that is stored"
            )
        return self.log_masses[temperature]

    def __getitem__(self, rows: Tensor | slice) -> TopKRows:
        masses = {t: values[rows] for t, values in self.log_masses.items()}
        return TopKRows(self.ids_NK[rows], masses)

    @classmethod
    def from_logits(
        cls, logits_NV: Tensor, k: int, temperatures: tuple[float, ...] = (1.0,)
    ) -> TopKRows:
        """The rows that a cache would hold for these teacher logits.

        Args:
            logits_NV: teacher logits.
            k: tokens to keep, 0 < k < V.
            temperatures: which to store; the metrics need 1.0.

        Raises:
            ValueError: ``k`` out of range.
        """
        if not 0 < k < logits_NV.shape[-1]:
            raise ValueError(
                f"k must lie between 1 and {logits_NV.shape[-1] - 1} (below the vocabulary, so "
                f"that there is a tail); got {k}"
            )
        wide = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
        ids_NK = wide.topk(k, dim=-1).indices
        masses = {
            t: torch.log_softmax(bucket_logits(wide / t, ids_NK), dim=-1) for t in temperatures
        }
        return cls(ids_NK, masses)


def bucket_logits(logits_NV: Tensor, ids_NK: Tensor) -> Tensor:
    """Logits of the K + 1 buckets, shape [N, K + 1]: the kept tokens', and the tail's logsumexp.

    Their softmax is the mass of each bucket; differentiable, and stable for a vanishing tail.

    Args:
        logits_NV: logits in fp32 or fp64.
        ids_NK: the kept tokens.
    """
    lowest = torch.finfo(logits_NV.dtype).min
    tail_N1 = logits_NV.scatter(-1, ids_NK, lowest).logsumexp(-1, keepdim=True)
    return torch.cat([logits_NV.gather(-1, ids_NK), tail_N1], dim=-1)
