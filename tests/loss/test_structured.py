"""The structured loss: masks, weights, denominators, graph."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from torch import Tensor

from sad_components.loss import Head, HiddenRows, SpanLoss, StructuredKDLoss, structured
from sad_components.loss.functional import DIVERGENCES

N, V = 47, 31
REASON, ACT = 1, 2


class Rows:
    """Random rows of all kinds; ``logits`` of the student carry the gradient."""

    def __init__(self, n: int = N, v: int = V, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.student = torch.randn(n, v, generator=g, dtype=torch.float64).requires_grad_()
        self.teacher = torch.randn(n, v, generator=g, dtype=torch.float64)
        self.targets = torch.randint(v, (n,), generator=g)
        self.kinds = torch.randint(4, (n,), generator=g)
        self.branch = torch.rand(n, generator=g) < 0.3
        self.weights = torch.rand(n, generator=g) + 0.5

    def run(self, loss: StructuredKDLoss, rows: slice = slice(None), counts=None, **options):
        branch = self.branch if options.pop("branch", False) else torch.zeros_like(self.branch)
        weights = self.weights[rows] if options.pop("weights", False) else None
        if counts is None:
            counts = loss.spec.count(self.kinds, branch)
        return loss(
            self.student[rows],
            self.teacher[rows],
            self.targets[rows],
            self.kinds[rows],
            branch[rows],
            counts=counts,
            weights_N=weights,
        )

    def gradient(self, loss: StructuredKDLoss, **options) -> Tensor:
        return torch.autograd.grad(self.run(loss, **options).loss, self.student)[0]


def _log_softmax(logits: Tensor) -> np.ndarray:
    x = logits.detach().numpy()
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_equals_the_equation():
    """reason: 2 (T^2 KL at T = 3), act: 0.5 (KL + 0.1 CE), each over its count."""
    rows = Rows()
    loss = StructuredKDLoss(
        reason={"weight": 2.0, "temperature": 3.0}, act={"weight": 0.5, "ce": 0.1}
    )
    kinds, expected = rows.kinds.numpy(), 0.0
    for kind, t, weight, ce in ((REASON, 3.0, 2.0, 0.0), (ACT, 1.0, 0.5, 0.1)):
        chosen = kinds == kind
        log_s, log_t = _log_softmax(rows.student / t), _log_softmax(rows.teacher / t)
        kl = (np.exp(log_t) * (log_t - log_s)).sum(-1)
        nll = -_log_softmax(rows.student)[np.arange(N), rows.targets.numpy()]
        expected += weight * (t**2 * kl + ce * nll)[chosen].sum() / chosen.sum()
    assert rows.run(loss).loss.item() == pytest.approx(expected, rel=1e-12)


def test_by_hand():
    """Student uniform over 2, teacher (1/4, 3/4): KL = 0.130812; one REASON, two ACT tokens."""
    student, teacher = torch.zeros(3, 2), torch.tensor([[1.0, 3.0]]).log().expand(3, 2)
    kinds, kl = torch.tensor([REASON, ACT, ACT]), 0.1308120
    for options, expected in (
        ({}, 2 * kl),
        ({"normalize": "pooled"}, kl),
        ({"reason": {"weight": 3.0}}, 4 * kl),
        ({"act": None}, kl),
        ({"act": {"divergence": None, "ce": 1.0}}, kl + np.log(2)),
    ):
        loss = StructuredKDLoss(**options)
        targets, counts = torch.zeros(3, dtype=torch.long), loss.spec.count(kinds)
        out = loss(student, teacher, targets, kinds, counts=counts)
        assert out.loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_identical_models_give_zero(name):
    rows = Rows()
    rows.teacher = rows.student.detach()
    loss = StructuredKDLoss(reason={"divergence": name}, act={"divergence": name})
    assert rows.run(loss).loss.abs() < 1e-12
    assert rows.gradient(loss).abs().max() < 1e-12


def test_unsupervised_tokens_get_no_gradient():
    rows = Rows()
    gradient = rows.gradient(StructuredKDLoss(act=None)).abs().sum(-1)
    assert (gradient[rows.kinds != REASON] == 0).all()
    assert (gradient[rows.kinds == REASON] > 0).all()


def test_nothing_supervised_is_zero_and_in_the_graph():
    rows = Rows()
    rows.kinds = torch.zeros_like(rows.kinds)
    out = rows.run(StructuredKDLoss())
    out.loss.backward()
    assert out.loss.item() == 0
    assert (rows.student.grad == 0).all()
    assert out.sums["count"].sum() == 0


def test_no_rows_at_all():
    rows = Rows(n=0)
    out = rows.run(StructuredKDLoss())
    out.loss.backward()
    assert out.loss.item() == 0
    assert rows.student.grad.shape == (0, V)


def test_span_with_the_shares_as_weights_is_pooled():
    rows = Rows()
    n_r, n_a = (int((rows.kinds == kind).sum()) for kind in (REASON, ACT))
    shares = {"reason": {"weight": n_r / (n_r + n_a)}, "act": {"weight": n_a / (n_r + n_a)}}
    by_span = rows.gradient(StructuredKDLoss(**shares, normalize="span"))
    torch.testing.assert_close(by_span, rows.gradient(StructuredKDLoss(normalize="pooled")))
    assert not torch.allclose(by_span, rows.gradient(StructuredKDLoss(normalize="span")))


@pytest.mark.parametrize("normalize", ["span", "pooled"])
def test_accumulation_gives_the_gradient_of_one_batch(normalize):
    """8 rows x 6 tokens at once against 4 micro-batches of 2 rows with unequal span counts."""
    rows = Rows(n=48)
    rows.kinds[:12] = REASON  # a micro-batch without ACT
    rows.kinds[12:24] = 0  # and one without anything
    loss = StructuredKDLoss(normalize=normalize)
    options = {"branch": True, "weights": True}
    whole = rows.gradient(loss, **options)
    counts = loss.spec.count(rows.kinds, rows.branch)
    parts = [slice(i, i + 12) for i in range(0, 48, 12)]
    outputs = [rows.run(loss, part, counts, **options) for part in parts]
    for out in outputs:
        out.loss.backward()
    torch.testing.assert_close(rows.student.grad, whole)
    total = rows.run(loss, **options)
    torch.testing.assert_close(sum(out.loss for out in outputs), total.loss)
    for name, sums in total.sums.items():
        torch.testing.assert_close(sum(out.sums[name] for out in outputs), sums)


def test_branch_tokens_carry_the_weight_of_reason():
    rows = Rows()
    light = {"reason": {"weight": 1.0}, "act": {"weight": 0.0}}
    moved = rows.branch & (rows.kinds == ACT)
    assert moved.any()
    as_reason = rows.gradient(StructuredKDLoss(**light), branch=True).abs().sum(-1)
    own = rows.gradient(StructuredKDLoss(**light, branch="own"), branch=True).abs().sum(-1)
    assert (as_reason[moved] > 0).all()
    assert (own[rows.kinds == ACT] == 0).all()
    sums = rows.run(StructuredKDLoss(), branch=True).sums
    assert sums["count"][REASON] == (rows.kinds == REASON).sum() + moved.sum()


def test_weights_scale_tokens_and_never_the_denominator():
    rows = Rows()
    loss = StructuredKDLoss()
    plain = rows.gradient(loss)
    torch.testing.assert_close(
        rows.gradient(loss, weights=True), plain * rows.weights[:, None].double()
    )
    rows.weights = torch.full((N,), 3.0).requires_grad_()
    out = rows.run(loss, weights=True)
    torch.testing.assert_close(out.loss, 3 * rows.run(loss).loss)
    out.loss.backward()
    assert rows.weights.grad is None


def test_metric_sums():
    rows = Rows()
    rows.teacher[:10] = rows.student.detach()[:10]
    out = rows.run(StructuredKDLoss(reason={"temperature": 2.0, "divergence": "tvd"}))
    log_s, log_t = _log_softmax(rows.student), _log_softmax(rows.teacher)
    p_t = np.exp(log_t)
    expected = {
        "kl": (p_t * (log_t - log_s)).sum(-1),
        "ce": -log_s[np.arange(N), rows.targets.numpy()],
        "entropy": -(p_t * log_t).sum(-1),
        "agree": (log_s.argmax(-1) == log_t.argmax(-1)).astype(float),
        "count": np.ones(N),
    }
    assert set(out.sums) == set(expected)
    for name, values in expected.items():
        for kind in (REASON, ACT):
            chosen = rows.kinds.numpy() == kind
            assert out.sums[name][kind].item() == pytest.approx(values[chosen].sum(), rel=1e-9)
        assert out.sums[name][[0, 3]].tolist() == [0, 0], "unsupervised kinds have no sums"
        assert not out.sums[name].requires_grad


def test_imitation_needs_no_teacher():
    rows = Rows()
    imitation = {"divergence": None, "ce": 1.0}
    loss = StructuredKDLoss(reason=imitation, act=imitation, normalize="pooled")
    counts = loss.spec.count(rows.kinds)
    out = loss(rows.student, None, rows.targets, rows.kinds, counts=counts)
    chosen = loss.spec.supervised(rows.kinds)
    expected = torch.nn.functional.cross_entropy(rows.student[chosen], rows.targets[chosen])
    torch.testing.assert_close(out.loss, expected)
    assert set(out.sums) == {"ce", "count"}


def test_errors():
    rows, loss = Rows(), StructuredKDLoss()
    arguments = (rows.targets, rows.kinds)
    counts = loss.spec.count(rows.kinds)
    with pytest.raises(ValueError, match=r"one shape; got \(47, 31\) and \(47, 30\)"):
        loss(rows.student, rows.teacher[:, 1:], *arguments, counts=counts)
    with pytest.raises(ValueError, match="there is none; give a teacher, or set"):
        loss(rows.student, None, *arguments, counts=counts)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradcheck(name):
    rows = Rows(n=5, v=7)
    rows.kinds = torch.tensor([0, 1, 1, 2, 2])
    loss = StructuredKDLoss(
        reason=SpanLoss(name, temperature=2.0, ce=0.3), act=SpanLoss(name, weight=0.5)
    )
    counts = loss.spec.count(rows.kinds)

    def value(student: Tensor) -> Tensor:
        return loss(student, rows.teacher, rows.targets, rows.kinds, counts=counts).loss

    assert torch.autograd.gradcheck(value, rows.student)


def test_from_hidden_is_the_loss_of_the_logits():
    rows, loss = Rows(), StructuredKDLoss()
    g = torch.Generator().manual_seed(1)
    hidden = torch.randn(N, 5, generator=g).requires_grad_()
    weight = torch.randn(V + 3, 5, generator=g).requires_grad_()
    bias = torch.randn(V + 3, generator=g)
    head = Head(weight, bias, scale=0.5, softcap=3.0, vocab_size=V)
    teacher = HiddenRows(torch.randn(N, 4, generator=g), Head(torch.randn(V, 4, generator=g)))
    counts = loss.spec.count(rows.kinds)
    out = loss.from_hidden(
        HiddenRows(hidden, head), teacher, rows.targets, rows.kinds, counts=counts
    )
    logits = 3.0 * torch.tanh(0.5 * (hidden @ weight[:V].T + bias[:V]) / 3.0)
    teacher_logits = teacher.hidden_ND @ teacher.head.weight_VD.T
    expected = loss(logits, teacher_logits, rows.targets, rows.kinds, counts=counts)
    torch.testing.assert_close(out.loss, expected.loss)
    for got, want in zip(
        torch.autograd.grad(out.loss, (hidden, weight)),
        torch.autograd.grad(expected.loss, (hidden, weight)),
    ):
        torch.testing.assert_close(got, want)
        assert got.abs().sum() > 0


def test_docstring_examples():
    result = doctest.testmod(structured)
    assert result.attempted > 0
    assert result.failed == 0
