"""A teacher of top-k rows: its buckets, and both losses on it."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
import torch
from torch import Tensor

from sad_components.loss import (
    FusedStructuredKDLoss,
    Head,
    HiddenRows,
    LossOutput,
    StructuredKDLoss,
    TopKRows,
    teacher_rows,
)
from sad_components.loss.functional import DIVERGENCES
from sad_components.loss.teacher_rows import bucket_logits

N, V, D = 23, 61, 6
KINDS = torch.arange(N) % 3
TARGETS = torch.arange(N) % V


def _inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Student's hidden states and head (with gradients), teacher's logits."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, (2 * torch.randn(N, V, generator=g, dtype=torch.float64)).to(dtype)


def _run(
    loss: StructuredKDLoss, hidden: Tensor, weight: Tensor, teacher: TopKRows, **head: Any
) -> LossOutput:
    counts = loss.spec.count(KINDS)
    rows = HiddenRows(hidden, Head(weight, **head))
    return loss.from_hidden(rows, teacher, TARGETS, KINDS, counts=counts)


def _every_kind(name: str, **fields: Any) -> dict[str, Any]:
    return {kind: {"divergence": name, **fields} for kind in ("reason", "act")}


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("k", [1, 8, V - 1])
def test_buckets_are_the_kept_probabilities_and_the_rest(k, temperature):
    _, _, logits = _inputs()
    rows = TopKRows.from_logits(logits, k, (temperature,))
    p = (logits / temperature).softmax(-1).sort(-1, descending=True).values
    torch.testing.assert_close(rows.at(temperature)[:, :-1].exp(), p[:, :k])
    torch.testing.assert_close(rows.at(temperature)[:, -1].exp(), p[:, k:].sum(-1))
    assert torch.equal(rows.ids_NK[:, 0], logits.argmax(-1))


def test_a_vanishing_tail_keeps_its_logarithm():
    logits = torch.tensor([[0.0, -500.0, -500.0]]).requires_grad_()
    masses = bucket_logits(logits, torch.tensor([[0]])).log_softmax(-1)
    assert masses[0, 1].item() == pytest.approx(-500 + torch.log(torch.tensor(2.0)).item())
    masses[0, 1].backward()
    assert logits.grad[0].tolist() == pytest.approx([-1.0, 0.5, 0.5], rel=1e-5)


@pytest.mark.parametrize("loss_class", [StructuredKDLoss, FusedStructuredKDLoss])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_all_but_one_token_kept_is_exact(name, loss_class):
    hidden, weight, logits = _inputs()
    loss = loss_class(**_every_kind(name, temperature=2.0, ce=0.1))
    got = _run(loss, hidden, weight, TopKRows.from_logits(logits, V - 1, (1.0, 2.0)))
    student = hidden @ weight.T
    exact = StructuredKDLoss.forward(
        loss, student, logits, TARGETS, KINDS, counts=loss.spec.count(KINDS)
    )
    torch.testing.assert_close(got.loss, exact.loss)
    torch.testing.assert_close(got.sums, exact.sums)
    for a, b in zip(*(torch.autograd.grad(out.loss, (hidden, weight)) for out in (got, exact))):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_fewer_tokens_say_less_never_more(name):
    """Merging outcomes cannot raise an f-divergence; the bias falls as k grows."""
    hidden, weight, logits = _inputs()
    loss = StructuredKDLoss(**_every_kind(name))
    losses = [
        _run(loss, hidden, weight, TopKRows.from_logits(logits, k)).loss.item()
        for k in (1, 4, 16, 40, V - 2, V - 1)
    ]
    assert losses == sorted(losses)
    assert losses[0] < 0.9 * losses[-1]
    assert losses[-2] > 0.95 * losses[-1]


@pytest.mark.parametrize("chunk", [1, 5, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_fused_equals_plain(name, dtype, chunk):
    hidden, weight, logits = _inputs(dtype)
    options = {
        "reason": {"divergence": name, "temperature": 2.0, "ce": 0.3},
        "act": {"divergence": name, "weight": 0.5},
        "context": {"divergence": None, "ce": 1.0},
    }
    teacher = TopKRows.from_logits(logits, 7, (1.0, 2.0))
    head = {"scale": 0.8, "softcap": 4.0}
    plain = _run(StructuredKDLoss(**options), hidden, weight, teacher, **head)
    fast = FusedStructuredKDLoss(**options, chunk_tokens=chunk)
    fast = _run(fast, hidden, weight, teacher, **head)
    close = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {}
    torch.testing.assert_close(fast.loss, plain.loss, **close)
    torch.testing.assert_close(fast.sums, plain.sums, **close)
    for a, b in zip(*(torch.autograd.grad(out.loss, (hidden, weight)) for out in (fast, plain))):
        torch.testing.assert_close(a, b, **close)
        assert a.abs().sum() > 0


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradcheck(name):
    hidden, weight, logits = _inputs()
    loss = FusedStructuredKDLoss(**_every_kind(name, temperature=2.0, ce=0.2))
    teacher = TopKRows.from_logits(logits, 3, (2.0,))
    assert torch.autograd.gradcheck(
        lambda h, w: _run(loss, h, w, teacher).loss, (hidden, weight), fast_mode=True
    )


@pytest.mark.parametrize("loss_class", [StructuredKDLoss, FusedStructuredKDLoss])
def test_metrics_without_masses_at_one(loss_class):
    hidden, weight, logits = _inputs()
    loss = loss_class(**_every_kind("forward_kl", temperature=2.0))
    sums = _run(loss, hidden, weight, TopKRows.from_logits(logits, 3, (2.0,))).sums
    assert set(sums) == {"ce", "agree", "count"}


@pytest.mark.parametrize("loss_class", [StructuredKDLoss, FusedStructuredKDLoss])
def test_a_temperature_that_is_not_stored(loss_class):
    hidden, weight, logits = _inputs()
    loss = loss_class(**_every_kind("forward_kl", temperature=3.0))
    with pytest.raises(ValueError, match=r"at temperature 3.0 \(stored: 1.0, 2.0\); cache them"):
        _run(loss, hidden, weight, TopKRows.from_logits(logits, 3, (1.0, 2.0)))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_extreme_logits_stay_finite(name):
    hidden, weight, logits = _inputs(torch.float32)
    weight.data[::3] *= 1e4
    teacher = TopKRows.from_logits(logits * 1e3, 5)
    losses = [c(**_every_kind(name)) for c in (StructuredKDLoss, FusedStructuredKDLoss)]
    plain, fast = (_run(loss, hidden, weight, teacher).loss for loss in losses)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)
    for a, b in zip(*(torch.autograd.grad(out, (hidden, weight)) for out in (fast, plain))):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_errors():
    with pytest.raises(ValueError, match=r"k must lie between 1 and 60 .*got 61"):
        TopKRows.from_logits(_inputs()[2], V)
    with pytest.raises(ValueError, match=r"\[2, 4\]; got \[2, 3\] at temperature 1.0"):
        TopKRows(torch.zeros(2, 3, dtype=torch.long), {1.0: torch.zeros(2, 3)})


def test_docstring_examples():
    result = doctest.testmod(teacher_rows)
    assert result.attempted > 0
    assert result.failed == 0
