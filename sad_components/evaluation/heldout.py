"""Teacher-forced metrics on held-out trajectories (``docs/method.md``).

Shape legend: N supervised tokens, D width, V vocabulary, K = 4 span kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sad_components.data.batch import Batch, blank, collate
from sad_components.data.transform import TokenizedTrajectory
from sad_components.loss import Head, HiddenRows, LossSpec, SpanLoss, TopKRows
from sad_components.loss.functional import entropy
from sad_components.loss.spec import NUM_KINDS
from sad_components.loss.structured import kind_sums, token_figures
from sad_components.models.last_layer import hidden_at
from sad_components.spans import SpanKind

#: Both agent kinds, each token under its own kind: metrics do not depend on a run's loss.
_SPEC = LossSpec(reason=SpanLoss(), act=SpanLoss(), branch="own")

#: Steps that KL per step tells apart; what comes later counts as the last of them.
MAX_STEPS = 64

#: A teacher's rows for a batch and a mask of its positions.
TeacherRows = Callable[[Batch, Tensor], HiddenRows | TopKRows]


@dataclass
class HeldoutScores:
    """What a model scored; means over tokens in nats, shares in [0, 1].

    Args:
        sums: name -> float64 sums per kind, shape [K].
        actions: actions written in the trajectories.
        matched: of those, how many the model predicts token for token (teacher-forced argmax;
            case and blanks do not count).
        step_kl, step_count: sums of the KL and of its tokens per agent step and kind, float64
            shape [MAX_STEPS, K]; row 0 is step 1.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    actions: int = 0
    matched: int = 0
    step_kl: Tensor | None = None
    step_count: Tensor | None = None

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Adds the sums of more tokens."""
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0) + value

    def add_steps(self, kl_N: Tensor, kinds_N: Tensor, steps_N: Tensor) -> None:
        """Adds the KL of more tokens to their steps' sums."""
        if self.step_kl is None or self.step_count is None:
            self.step_kl, self.step_count = _step_table(kl_N.device), _step_table(kl_N.device)
        at = (steps_N.clamp(1, MAX_STEPS) - 1, kinds_N)
        self.step_kl.index_put_(at, kl_N.double(), accumulate=True)
        self.step_count.index_put_(at, torch.ones_like(kl_N).double(), accumulate=True)

    def kl_by_step(self) -> list[dict[str, float | int]]:
        """Mean KL (nats/token) of REASON and ACT per agent step; steps without tokens left out."""
        if self.step_kl is None or self.step_count is None:
            return []
        rows: list[dict[str, float | int]] = []
        for index, (kl_K, count_K) in enumerate(zip(self.step_kl, self.step_count)):
            row = {
                kind.label: float(kl_K[kind] / count_K[kind])
                for kind in (SpanKind.REASON, SpanKind.ACT)
                if count_K[kind] > 0
            }
            if row:
                rows.append({"step": index + 1, **row, "tokens": int(count_K.sum())})
        return rows

    def mean(self, name: str, *kinds: SpanKind) -> float | None:
        """Mean over the tokens of ``kinds`` (both agent kinds by default); None without tokens."""
        if name not in self.sums:
            return None
        chosen = [int(k) for k in kinds or (SpanKind.REASON, SpanKind.ACT)]
        count = float(self.sums["count"][chosen].sum())
        return float(self.sums[name][chosen].sum()) / count if count else None

    def to_dict(self) -> dict[str, Any]:
        """The figures under the names that ``summary.json`` uses."""
        out: dict[str, Any] = {
            "kl_reason": self.mean("kl", SpanKind.REASON),
            "kl_act": self.mean("kl", SpanKind.ACT),
            "ce": self.mean("ce"),
            "ce_reason": self.mean("ce", SpanKind.REASON),
            "ce_act": self.mean("ce", SpanKind.ACT),
            "top1_agreement": self.mean("agree"),
            "action_match": self.matched / self.actions if self.actions else None,
            "actions": self.actions,
            "kl_by_step": self.kl_by_step() or None,
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
        rank, world: this process scores every ``world``-th row. Every process calls a model
            equally often, as sharded ones need it.
        reduce: sums a tensor over ranks, in place.
    """

    def __init__(
        self,
        rows: Sequence[TokenizedTrajectory],
        pad_id: int,
        decode: Callable[[Sequence[int]], str],
        *,
        batch_size: int = 4,
        chunk_tokens: int = 256,
        rank: int = 0,
        world: int = 1,
        reduce: Callable[[Tensor], Tensor] = lambda value: value,
    ) -> None:
        self._reduce = reduce
        self.rows = sorted(rows, key=len)[rank::world]
        self._rounds = -(-len(rows) // (world * batch_size))
        self.pad_id = pad_id
        self.decode = decode
        self.batch_size = batch_size
        self.chunk_tokens = chunk_tokens
        self._teacher: list[HiddenRows | TopKRows] = []

    @torch.no_grad()
    def score_teacher(self, rows_of: TeacherRows, device: torch.device) -> HeldoutScores:
        """The teacher's own scores; its rows are kept for :meth:`score`.

        Args:
            rows_of: gives the teacher's rows for a batch and its supervised positions.
            device: where batches go.

        Returns:
            CE, action match and entropy; of a teacher that is known by its top tokens only, the
            entropy of its buckets.
        """
        self._teacher = [_kept(rows_of(b, _chosen(b))) for b in self._batches(device)]
        first = self._teacher[0] if self._teacher else None
        if isinstance(first, HiddenRows):
            return self._score(lambda index, _: self._teacher[index].hidden_ND, first.head, device)
        return self._score_buckets(device)

    def _score_buckets(self, device: torch.device) -> HeldoutScores:
        scores = HeldoutScores()
        for rows, batch in zip(self._teacher, self._batches(device)):
            kinds = batch.span_ids_BS[_chosen(batch)]
            sums = {
                "count": kind_sums(torch.ones_like(kinds), kinds),
                "entropy": kind_sums(entropy(rows.at(1.0)), kinds),
            }
            scores.add(sums)
        return self._summed(scores, device)

    @torch.no_grad()
    def score(self, student: nn.Module, head: Head) -> HeldoutScores:
        """The student's scores; with KL and agreement if :meth:`score_teacher` came before.

        Args:
            student: returns last hidden states; put into eval mode meanwhile.
            head: its projection.
        """
        training = student.training
        student.eval()
        try:
            hidden_of = lambda _, b: hidden_at(student, b.tokens_BS, _chosen(b))  # noqa: E731
            return self._score(hidden_of, head, head.weight_VD.device)
        finally:
            student.train(training)

    def _score(
        self, hidden_of: Callable[[int, Batch], Tensor], head: Head, device: torch.device
    ) -> HeldoutScores:
        scores = HeldoutScores()
        for index, batch in enumerate(self._batches(device)):
            chosen = _chosen(batch)
            teacher = self._teacher[index] if self._teacher else None
            hidden_ND = hidden_of(index, batch).to(device)
            predicted = self._add(scores, batch, chosen, hidden_ND, head, teacher)
            self._match_actions(scores, batch, chosen, predicted)
        return self._summed(scores, device)

    def _summed(self, scores: HeldoutScores, device: torch.device) -> HeldoutScores:
        """The scores of all ranks together."""
        names = ("ce", "count", "kl", "entropy", "agree")
        empty = torch.zeros(NUM_KINDS, dtype=torch.float64, device=device)
        table = torch.stack([scores.sums.get(name, empty) for name in names])
        counted = torch.tensor([scores.actions, scores.matched], device=device)
        by_step = (scores.step_kl, scores.step_count)
        steps = torch.stack([_step_table(device) if t is None else t for t in by_step])
        for part in (table, counted, steps):
            self._reduce(part)
        kept = [n for n in names if n in scores.sums] or names
        sums = {name: table[names.index(name)] for name in kept}
        return HeldoutScores(sums, *counted.tolist(), *steps)

    def _batches(self, device: torch.device) -> Iterator[Batch]:
        for index in range(self._rounds):
            rows = self.rows[index * self.batch_size : (index + 1) * self.batch_size]
            batch = collate(rows, self.pad_id, _SPEC) if rows else blank(self.pad_id)
            yield batch.to(device)

    def _add(
        self,
        scores: HeldoutScores,
        batch: Batch,
        chosen: Tensor,
        hidden_ND: Tensor,
        head: Head,
        teacher: HiddenRows | TopKRows | None,
    ) -> Tensor:
        """Adds the batch's sums; the student's argmax per supervised token."""
        targets, kinds = batch.targets_BS[chosen], batch.span_ids_BS[chosen]
        steps = batch.steps_BS[chosen]
        predicted = []
        for part in torch.arange(len(targets), device=targets.device).split(self.chunk_tokens):
            student_NV = head.logits(hidden_ND[part])
            teacher_NV: Tensor | TopKRows | None = None
            if isinstance(teacher, HiddenRows):
                hidden = teacher.hidden_ND[part.cpu()].to(part.device)
                teacher_NV = teacher.head.logits(hidden)
            elif teacher is not None:
                teacher_NV = teacher[part]
            figures = token_figures(student_NV, teacher_NV, targets[part])
            scores.add({name: kind_sums(value, kinds[part]) for name, value in figures.items()})
            if "kl" in figures:
                scores.add_steps(figures["kl"], kinds[part], steps[part])
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
                pairs = zip(batch.targets_BS[b][at].tolist(), guess_BS[b][at].tolist())
                scores.actions += 1
                scores.matched += all(self._same(wanted, got) for wanted, got in pairs)

    def _same(self, wanted: int, got: int) -> bool:
        """Equal tokens, but for case and blanks."""
        if wanted == got:
            return True
        left, right = self.decode([wanted]), self.decode([got])
        readable = "\ufffd" not in left + right  # a piece of a character is no text
        return readable and normalise(left) == normalise(right)


def _step_table(device: torch.device) -> Tensor:
    return torch.zeros(MAX_STEPS, NUM_KINDS, dtype=torch.float64, device=device)


def _kept(rows: HiddenRows | TopKRows) -> HiddenRows | TopKRows:
    """Rows to keep for later: wide hidden states do not stay on a device."""
    return HiddenRows(rows.hidden_ND.cpu(), rows.head) if isinstance(rows, HiddenRows) else rows


def _chosen(batch: Batch) -> Tensor:
    return _SPEC.supervised(batch.span_ids_BS, batch.branch_BS)


def normalise(action: str) -> str:
    """An action's text for comparison: lower case, blanks folded."""
    return " ".join(action.lower().split())


def teacher_row(scores: HeldoutScores) -> dict[str, Any]:
    """The teacher's own figures: CE, action match, entropy per kind (nats/token)."""
    out = scores.to_dict()
    entropies = {
        "entropy": scores.mean("entropy"),
        "entropy_reason": scores.mean("entropy", SpanKind.REASON),
        "entropy_act": scores.mean("entropy", SpanKind.ACT),
    }
    kept = ("ce", "ce_reason", "ce_act", "action_match", "actions")
    return {**{k: out[k] for k in kept if k in out}, **entropies}


#: Columns of the before/after table: figure, heading, format.
_COLUMNS = (
    ("kl_reason", "KL_reason", "{:.3f}"),
    ("kl_act", "KL_act", "{:.3f}"),
    ("ce", "CE", "{:.3f}"),
    ("action_match", "action match", "{:.1%}"),
    ("entropy", "entropy", "{:.3f}"),
)


def format_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A text table of scores, one row a model; a figure that a model lacks is a dash."""
    names = [c for c in _COLUMNS if any(row.get(c[0]) is not None for row in rows.values())]
    width = max(len(name) for name in rows)
    lines = [" " * width + "".join(f"  {heading:>12}" for _, heading, _ in names)]
    for name, row in rows.items():
        cells = ("-" if row.get(k) is None else f.format(row[k]) for k, _, f in names)
        lines.append(f"{name:<{width}}" + "".join(f"  {cell:>12}" for cell in cells))
    return "\n".join(lines)
