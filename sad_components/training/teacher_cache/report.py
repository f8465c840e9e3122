"""What a cache costs and what it loses: size, teacher entropy, divergence against the exact one.

Shape legend: N supervised tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sad_components.data.batch import collate
from sad_components.data.transform import TokenizedTrajectory
from sad_components.loss import Head, HiddenRows, SpanLoss, TopKRows
from sad_components.loss.functional import DIVERGENCES
from sad_components.loss.spec import LossSpec
from sad_components.loss.teacher_rows import bucket_logits
from sad_components.spans import SpanKind
from sad_components.training.teacher_cache.codecs import DrawnRows, HiddenCodec
from sad_components.training.teacher_cache.shards import ShardEntry
from sad_components.training.teacher_cache.sources import LiveSource

#: Share of a divergence that a cache may lose.
MOST_BIAS = 0.01
#: Nats per token below which a soft target is a hard one.
LOW_ENTROPY = 0.02
_CHUNK_TOKENS = 128


def totals(root: Path, entries: Sequence[ShardEntry]) -> dict[str, Any]:
    """Rows, supervised tokens, bytes per token, and entropy per span kind (nats per token)."""
    rows = [row for entry in entries for row in entry.rows]
    tokens = sum(row.tokens for row in rows)
    size = sum((root / entry.path).stat().st_size for entry in entries)
    counts = [sum(row.counts[kind] for row in rows) for kind in SpanKind]
    sums = [sum(row.entropy[kind] for row in rows) for kind in SpanKind]
    return {
        "rows": len(rows),
        "supervised_tokens": tokens,
        "bytes": size,
        "bytes_per_token": size / max(tokens, 1),
        "entropy": {k.label: sums[k] / counts[k] for k in SpanKind if counts[k]},
    }


def lines(report: dict[str, Any]) -> list[str]:
    """The report for people."""
    out = [
        f"{report['rows']:,} rows, {report['supervised_tokens']:,} supervised tokens, "
        f"{report['bytes'] / 1e6:,.1f} MB: {report['bytes_per_token']:.1f} bytes per token"
    ]
    for kind, value in report["entropy"].items():
        out.append(f"teacher entropy on {kind}: {value:.3f} nats per token")
        if value < LOW_ENTROPY:
            out.append(
                f"  warning: below {LOW_ENTROPY}: on {kind} every divergence is nearly a "
                "cross-entropy, so that methods will hardly differ"
            )
    for row in report.get("bias", []):
        out.append(
            f"{row['divergence']} at T {row['temperature']:g}: exact {row['exact']:.4f}, cached "
            f"{row['cached']:.4f} ({row['bias']:+.3%}), gradient cosine {row['cosine']:.5f}"
        )
    if any(abs(row["bias"]) > MOST_BIAS for row in report.get("bias", [])):
        out.append(
            f"  warning: some divergence is off by more than {MOST_BIAS:.0%}: this teacher spreads "
            "its mass over more tokens than are kept; raise cache.k, or use mode hidden"
        )
    return out


def compare(
    source: LiveSource,
    student: nn.Module,
    head: Head,
    rows: Sequence[TokenizedTrajectory],
    divergences: Iterable[str] = tuple(DIVERGENCES),
) -> list[dict[str, Any]]:
    """Divergences from what the codec keeps, beside the exact ones, on a sample.

    Args:
        source: the teacher and the codec.
        student: returns last hidden states.
        head: the student's, cut to the teacher's vocabulary.
        rows: the sample.
        divergences: which, of those that the codec gives.

    Returns:
        One record per divergence and temperature: ``exact`` and ``cached`` (nats per token),
        ``bias`` (relative) and ``cosine`` of the gradients with respect to the student's logits.
        Empty for hidden states: they are exact.
    """
    codec = source.codec
    if isinstance(codec, HiddenCodec):
        return []
    cases = [
        SpanLoss(divergence=name, temperature=t)
        for name in divergences
        for t in codec.settings()["temperatures"]
    ]
    cases = [c for c in cases if codec.refusal(LossSpec(act=c, branch="own")) is None]
    sums = {case: torch.zeros(5, dtype=torch.float64) for case in cases}
    tokens = 0
    for row in rows:
        for student_NV, exact_NV, cached in _pieces(source, student, head, row):
            tokens += len(student_NV)
            for case in cases:
                sums[case] += _measure(case, student_NV, exact_NV, cached)
    return [_record(case, sums[case] / max(tokens, 1)) for case in cases]


@torch.no_grad()
def _pieces(source: LiveSource, student: nn.Module, head: Head, row: TokenizedTrajectory):
    """Student logits, teacher logits and stored rows, some tokens at a time."""
    batch = collate([row], source.pad_id, source.spec).to(source.device)
    chosen_BS = source.spec.supervised(batch.span_ids_BS)
    teacher: HiddenRows = source.teacher.rows(batch, chosen_BS)
    student_ND = student(batch.tokens_BS)[chosen_BS]
    generator = torch.Generator().manual_seed(0)
    for part in torch.arange(len(student_ND)).split(_CHUNK_TOKENS):
        hidden_ND = teacher.hidden_ND[part]
        exact_NV = teacher.head.logits(hidden_ND).float().cpu()
        student_NV = head.logits(student_ND[part])[:, : exact_NV.shape[1]].float().cpu()
        parts = source.codec.encode(hidden_ND.cpu(), exact_NV, generator)
        yield student_NV, exact_NV, source.codec.decode(parts)


def _measure(case: SpanLoss, student_NV: Tensor, exact_NV: Tensor, cached: TopKRows) -> Tensor:
    """Sums over tokens: exact, cached, and the gradients' products (exact^2, cached^2, both)."""
    function, t = DIVERGENCES[str(case.divergence)][0], case.temperature
    student_NV = student_NV.detach().requires_grad_()
    exact_N = function(student_NV / t, exact_NV / t, **case.parameters)
    buckets = bucket_logits(student_NV / t, cached.ids_NK)
    cached_N = function(buckets, cached.at(t), **case.parameters)
    if isinstance(cached, DrawnRows):
        cached_N = cached_N + cached.offsets[t]
    (mine,) = torch.autograd.grad(exact_N.sum(), student_NV)
    (theirs,) = torch.autograd.grad(cached_N.sum(), student_NV)
    products = [(a * b).sum() for a, b in ((mine, mine), (theirs, theirs), (mine, theirs))]
    return torch.stack([exact_N.sum(), cached_N.sum(), *products]).detach().double()


def _record(case: SpanLoss, means: Tensor) -> dict[str, Any]:
    exact, cached, mine, theirs, both = means.tolist()
    return {
        "divergence": case.divergence,
        "temperature": case.temperature,
        "exact": exact,
        "cached": cached,
        "bias": cached / exact - 1 if exact else 0.0,
        "cosine": both / (mine * theirs) ** 0.5 if mine and theirs else 1.0,
    }
