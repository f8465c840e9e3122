"""The divergences against the equations, written once more in numpy float64."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sad_components.loss import functional
from sad_components.loss.functional import DIVERGENCES, cross_entropy, entropy, jsd, skew_kl

SHAPES = [(1, 2), (3, 31), (47, 123)]
BETA, ALPHA = 0.3, 0.2


def _softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(-1)


EQUATIONS = {
    "forward_kl": lambda s, t: _kl(t, s),
    "reverse_kl": lambda s, t: _kl(s, t),
    "symmetric_kl": lambda s, t: (_kl(t, s) + _kl(s, t)) / 2,
    "jsd": lambda s, t: (
        BETA * _kl(t, BETA * t + (1 - BETA) * s) + (1 - BETA) * _kl(s, BETA * t + (1 - BETA) * s)
    ),
    "skew_kl": lambda s, t: _kl(t, ALPHA * t + (1 - ALPHA) * s),
    "tvd": lambda s, t: np.abs(s - t).sum(-1) / 2,
}


def _divergence(name: str, student: Tensor, teacher: Tensor) -> Tensor:
    parameters = {"jsd": {"beta": BETA}, "skew_kl": {"alpha": ALPHA}}.get(name, {})
    return DIVERGENCES[name][0](student, teacher, **parameters)


def _pair(n: int, v: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(n, v, dtype=dtype) * 2, torch.randn(n, v, dtype=dtype) * 2


def test_every_divergence_has_an_equation():
    assert set(EQUATIONS) == set(DIVERGENCES)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_equals_its_equation(name, shape):
    student, teacher = _pair(*shape)
    expected = EQUATIONS[name](_softmax(student.numpy()), _softmax(teacher.numpy()))
    torch.testing.assert_close(_divergence(name, student, teacher), torch.from_numpy(expected))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("forward_kl", 0.25 * math.log(0.5) + 0.75 * math.log(1.5)),
        ("reverse_kl", 0.5 * math.log(2) + 0.5 * math.log(2 / 3)),
        ("tvd", 0.25),
    ],
)
def test_by_hand(name, expected):
    """Student (1/2, 1/2), teacher (1/4, 3/4)."""
    student = torch.zeros(1, 2, dtype=torch.float64)
    teacher = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)
    assert _divergence(name, student, teacher).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_identical_inputs_give_zero_and_others_more(name, dtype):
    student, teacher = _pair(47, 31, dtype)
    other = _divergence(name, student, teacher)
    assert other.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(
        _divergence(name, student, student), torch.zeros_like(other), atol=1e-6, rtol=0
    )
    assert (other > 1e-3).all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_constant_added_to_the_logits_changes_nothing(name):
    student, teacher = _pair(5, 31)
    shifted = _divergence(name, student + 7, teacher - 3)
    torch.testing.assert_close(shifted, _divergence(name, student, teacher))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_extreme_logits_stay_finite(name, dtype):
    big = 1e4
    student = torch.tensor([[big, -big, 0.0], [-big, big, 0.0], [big, big, -big]], dtype=dtype)
    teacher = torch.tensor([[-big, big, 0.0], [-big, big, 0.0], [0.0, 0.0, 0.0]], dtype=dtype)
    student.requires_grad_()
    value = _divergence(name, student, teacher)
    value.sum().backward()
    assert value.isfinite().all()
    assert student.grad.isfinite().all()
    rounding = 1e-7 if dtype == torch.float32 else 1e-15
    assert (value >= -rounding).all()
    assert value[1].abs() <= rounding


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients_reach_the_student_only(name):
    student, teacher = (x.requires_grad_() for x in _pair(3, 31))
    _divergence(name, student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    torch.testing.assert_close(student.grad.sum(-1), torch.zeros(3).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradcheck(name):
    student, teacher = _pair(3, 7)
    assert torch.autograd.gradcheck(
        lambda s: _divergence(name, s, teacher), student.requires_grad_()
    )


def test_limits_of_jsd_and_skew():
    """jsd / beta -> forward KL at 0, jsd / (1 - beta) -> reverse KL at 1; skew -> forward at 0."""
    student, teacher = _pair(5, 31)
    eps, close = 1e-6, {"rtol": 1e-3, "atol": 0.0}
    forward = functional.forward_kl(student, teacher)
    reverse = functional.reverse_kl(student, teacher)
    torch.testing.assert_close(jsd(student, teacher, eps) / eps, forward, **close)
    torch.testing.assert_close(jsd(student, teacher, 1 - eps) / eps, reverse, **close)
    torch.testing.assert_close(skew_kl(student, teacher, eps), forward, **close)
    assert (skew_kl(student, teacher, 1 - eps) < 1e-6).all()


def test_jsd_is_symmetric_and_bounded_at_one_half():
    student, teacher = _pair(47, 31)
    torch.testing.assert_close(jsd(student, teacher), jsd(teacher, student))
    apart = jsd(student * 100, teacher * 100)
    assert (apart <= math.log(2) + 1e-12).all()


def test_entropy_and_cross_entropy():
    logits, _ = _pair(47, 31)
    p, targets = _softmax(logits.numpy()), torch.arange(47) % 31
    torch.testing.assert_close(entropy(logits), torch.from_numpy(-(p * np.log(p)).sum(-1)))
    expected = torch.from_numpy(-np.log(p[np.arange(47), targets.numpy()]))
    torch.testing.assert_close(cross_entropy(logits, targets), expected)
    assert entropy(torch.zeros(1, 8)).item() == pytest.approx(math.log(8))
    assert entropy(torch.tensor([[1e4, -1e4]])).item() == 0


def test_docstring_examples():
    result = doctest.testmod(functional)
    assert result.attempted > 0
    assert result.failed == 0
