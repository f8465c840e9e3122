"""Teacher-forced metrics on held-out trajectories (``docs/method.md``, section 6).

Shape legend: N supervised tokens, D width, V vocabulary, K = 4 span kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sad_components.data.batch import Batch, collate
from sad_components.data.transform import TokenizedTrajectory
from sad_components.loss import Head, LossSpec, SpanLoss
from sad_components.loss.structured import span_sums
from sad_components.spans import SpanKind

#: Both agent kinds, each token under its own kind: metrics do not depend on a run's loss.
_SPEC = LossSpec(reason=SpanLoss(), act=SpanLoss(), branch="own")


@dataclass
class HeldoutScores:
    """What a model scored; means over tokens in nats, shares in [0, 1].

    Args:
        sums: name -> float64 sums per kind, shape [K].
        actions: actions written in the trajectories.
        matched: of those, how many the model predicts token for token (teacher-forced argmax,
            compared as text after folding case and blanks).
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    actions: int = 0
    matched: int = 0

    def mean(self, name: str, *kinds: SpanKind) -> float | None:
        """Mean over the tokens of ``kinds`` (both agent kinds by default); None without tokens."""
        if name not in self.sums:
            return None
        chosen = [int(k) for k in kinds or (SpanKind.REASON, SpanKind.ACT)]
        count = float(self.sums["count"][chosen].sum())
        return float(self.sums[name][chosen].sum()) / count if count else None

    def to_dict(self) -> dict[str, float | int | None]:
        """The figures under the names that ``summary.json`` uses."""
        out: dict[str, float | int | None] = {
            "kl_reason": self.mean("kl", SpanKind.REASON),
            "kl_act": self.mean("kl", SpanKind.ACT),
            "ce": self.mean("ce"),
            "ce_reason": self.mean("ce", SpanKind.REASON),
            "ce_act": self.mean("ce", SpanKind.ACT),
            "top1_agreement": self.mean("agree"),
            "action_match": self.matched / self.actions if self.actions else None,
            "actions": self.actions,
        }
        return {k: v for k, v in out.items() if v is not None}


class HeldoutEvaluator:
    """Scores models on the same held-out rows.

    Args:
        rows: tokenised held-out trajectories.
        pad_id: of the tokenizer.
        decode: ids to text.
        batch_size: rows per forward pass.
        chunk_tokens: supervised tokens whose logits are held at once.
    """

    def __init__(
        self,
        rows: Sequence[TokenizedTrajectory],
        pad_id: int,
        decode: Callable[[Sequence[int]], str],
        *,
        batch_size: int = 4,
        chunk_tokens: int = 256,
    ) -> None:
        self.rows = sorted(rows, key=len)
        self.pad_id = pad_id
        self.decode = decode
        self.batch_size = batch_size
        self.chunk_tokens = chunk_tokens
        self._teacher_hidden: list[Tensor] | None = None

    @torch.no_grad()
    def score(
        self,
        student: nn.Module,
        student_head: Head,
        teacher: nn.Module | None = None,
        teacher_head: Head | None = None,
    ) -> HeldoutScores:
        """Scores ``student``; KL and agreement against ``teacher`` when there is one.

        Args:
            student: returns last hidden states (``models.hidden.stop_at_hidden``).
            student_head: its projection.
            teacher: likewise; its hidden states are kept for later calls.
            teacher_head: its projection.
        """
        device = student_head.weight_VD.device
        scores = HeldoutScores()
        training = student.training
        student.eval()
        if teacher is not None and self._teacher_hidden is None:
            self._teacher_hidden = [
                teacher(b.tokens_BS)[_chosen(b)].cpu() for b in self._batches(device)
            ]
        for index, batch in enumerate(self._batches(device)):
            chosen = _chosen(batch)
            hidden_ND = student(batch.tokens_BS)[chosen]
            teacher_ND = None
            if teacher_head is not None and self._teacher_hidden is not None:
                teacher_ND = self._teacher_hidden[index].to(device)
            predicted = self._add(
                scores, batch, chosen, hidden_ND, student_head, teacher_ND, teacher_head
            )
            self._match_actions(scores, batch, chosen, predicted)
        student.train(training)
        return scores

    def _batches(self, device: torch.device) -> Iterator[Batch]:
        for start in range(0, len(self.rows), self.batch_size):
            rows = self.rows[start : start + self.batch_size]
            yield collate(rows, self.pad_id, _SPEC).to(device)

    def _add(
        self,
        scores: HeldoutScores,
        batch: Batch,
        chosen: Tensor,
        hidden_ND: Tensor,
        head: Head,
        teacher_ND: Tensor | None,
        teacher_head: Head | None,
    ) -> Tensor:
        """Adds the batch's sums; the student's argmax per supervised token."""
        targets, kinds = batch.targets_BS[chosen], batch.span_ids_BS[chosen]
        predicted = []
        for part in torch.arange(len(targets), device=targets.device).split(self.chunk_tokens):
            student_NV = head.logits(hidden_ND[part])
            teacher_NV = None
            if teacher_ND is not None and teacher_head is not None:
                teacher_NV = teacher_head.logits(teacher_ND[part])
            every = torch.ones_like(part, dtype=torch.bool)
            sums = span_sums(student_NV, teacher_NV, targets[part], kinds[part], every)
            for name, value in sums.items():
                scores.sums[name] = scores.sums.get(name, 0) + value
            predicted.append(student_NV.argmax(-1))
        return torch.cat(predicted) if predicted else targets

    def _match_actions(
        self, scores: HeldoutScores, batch: Batch, chosen: Tensor, predicted: Tensor
    ) -> None:
        guess_BS = batch.targets_BS.clone()
        guess_BS[chosen] = predicted
        for b in range(len(batch.ids)):
            is_act = batch.span_ids_BS[b] == SpanKind.ACT
            for step in batch.steps_BS[b][is_act].unique().tolist():
                at = is_act & (batch.steps_BS[b] == step)
                wanted = self.decode(batch.targets_BS[b][at].tolist())
                got = self.decode(guess_BS[b][at].tolist())
                scores.actions += 1
                scores.matched += normalise(wanted) == normalise(got)


def _chosen(batch: Batch) -> Tensor:
    return _SPEC.supervised(batch.span_ids_BS, batch.branch_BS)


def normalise(action: str) -> str:
    """An action's text for comparison: lower case, blanks folded."""
    return " ".join(action.lower().split())


def teacher_row(scores: HeldoutScores) -> dict[str, float | int | None]:
    """The teacher's own figures: CE, action match, entropy per kind (nats/token)."""
    out = scores.to_dict()
    entropies = {
        "entropy": scores.mean("entropy"),
        "entropy_reason": scores.mean("entropy", SpanKind.REASON),
        "entropy_act": scores.mean("entropy", SpanKind.ACT),
    }
    kept = ("ce", "ce_reason", "ce_act", "action_match", "actions")
    return {**{k: out[k] for k in kept if k in out}, **entropies}
