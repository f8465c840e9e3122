"""The specification: what it refuses, counts and scales."""

from __future__ import annotations

import pytest
import torch

from sad_components.loss import LossSpec, SpanLoss
from sad_components.spans import SpanKind

KINDS = torch.tensor([0, 1, 1, 2, 2, 2, 3])
BRANCH = torch.tensor([0, 1, 0, 1, 0, 0, 1]).bool()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"divergence": "kl"}, "divergence is one of forward_kl, .*got 'kl'"),
        ({"weight": -1.0}, "weight must be >= 0; got -1.0"),
        ({"weight": float("nan")}, "weight must be >= 0; got nan"),
        ({"ce": -0.5}, "ce must be >= 0; got -0.5"),
        ({"temperature": 0.0}, "temperature must be > 0; got 0.0"),
        ({"beta": 1.0}, "beta must lie strictly between 0 and 1; got 1.0 .*forward_kl"),
        ({"alpha": 0.0}, "alpha must lie strictly between 0 and 1; got 0.0"),
        ({"divergence": None}, "neither a divergence nor ce learns nothing"),
        ({"temprature": 2.0}, "temprature .did you mean 'temperature'.*; fields: alpha, beta, ce"),
        ("forward_kl", "is a mapping of fields; got 'forward_kl'"),
    ],
)
def test_refusals_name_the_span_kind(fields, message):
    with pytest.raises(ValueError, match=f"^loss.act.*{message}"):
        LossSpec.parse(None, fields, None, None, "span", "own")


def test_refusals_of_the_whole():
    with pytest.raises(ValueError, match="normalize is 'span' or 'pooled'; got 'mean'"):
        LossSpec(reason=SpanLoss(), normalize="mean")
    with pytest.raises(ValueError, match="branch is 'reason' or 'own'; got 'act'"):
        LossSpec(reason=SpanLoss(), branch="act")
    with pytest.raises(ValueError, match="at least one span kind"):
        LossSpec()


def test_a_branch_token_of_an_action_counts_as_reason():
    spec = LossSpec(reason=SpanLoss(), act=SpanLoss())
    assert spec.kinds(KINDS, BRANCH).tolist() == [0, 1, 1, 1, 2, 2, 3]
    assert spec.count(KINDS, BRANCH).tolist() == [0, 3, 2, 0]
    assert spec.count(KINDS).tolist() == [0, 2, 3, 0]
    assert spec.supervised(KINDS, BRANCH).tolist() == [False, *[True] * 5, False]


@pytest.mark.parametrize(
    "spec",
    [LossSpec(reason=SpanLoss(), act=SpanLoss(), branch="own"), LossSpec(act=SpanLoss())],
    ids=["own", "reason unsupervised"],
)
def test_a_branch_token_keeps_its_kind(spec):
    assert torch.equal(spec.kinds(KINDS, BRANCH), KINDS)


def test_counts_add_up_over_batches():
    spec = LossSpec(reason=SpanLoss(), observation=SpanLoss())
    halves = spec.count(KINDS[:3]) + spec.count(KINDS[3:])
    assert torch.equal(halves, spec.count(KINDS.view(1, -1)))


def test_scales():
    fields = {"reason": SpanLoss(weight=2.0), "act": SpanLoss(weight=3.0)}
    counts = torch.tensor([9.0, 4.0, 0.0, 9.0])
    assert LossSpec(**fields).scales(counts).tolist() == [0, 0.5, 3.0, 0]
    assert LossSpec(**fields, normalize="pooled").scales(counts).tolist() == [0, 0.5, 0.75, 0]


def test_needs_teacher():
    assert LossSpec(act=SpanLoss()).needs_teacher
    assert not LossSpec(act=SpanLoss(divergence=None, ce=1.0)).needs_teacher
    assert not LossSpec(act=SpanLoss(weight=0.0)).needs_teacher


def test_only_the_parameter_of_the_divergence_is_handed_on():
    assert SpanLoss("jsd", beta=0.2).parameters == {"beta": 0.2}
    assert SpanLoss("skew_kl", alpha=0.4).parameters == {"alpha": 0.4}
    assert SpanLoss("tvd").parameters == {}
    assert SpanLoss(None, ce=1.0).parameters == {}


def test_labels_of_the_specification_are_those_of_the_spans():
    every = {kind.label: SpanLoss() for kind in SpanKind}
    assert set(LossSpec(**every).by_kind) == set(SpanKind)


def test_compiled_code_sees_the_same_kinds():
    """Dynamo of torch 2.13 takes ``tensor == IntEnum member`` for False: compare with an int."""
    spec = LossSpec(reason=SpanLoss(), act=SpanLoss())
    counted = torch.compile(spec.count, backend="eager")(KINDS, BRANCH)
    assert torch.equal(counted, spec.count(KINDS, BRANCH))
