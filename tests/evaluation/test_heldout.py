"""Held-out scores of models whose score is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from sad_components.data.transform import TokenizedTrajectory
from sad_components.evaluation.heldout import (
    MAX_STEPS,
    HeldoutEvaluator,
    HeldoutScores,
    format_table,
    teacher_row,
)
from sad_components.loss import Head, HiddenRows, TopKRows
from sad_components.spans import SpanKind

C, R, A, O = SpanKind  # noqa: E741
VOCAB = 8


def row(tokens, kinds, steps) -> TokenizedTrajectory:
    return TokenizedTrajectory(
        np.array(tokens),
        np.array(kinds, dtype=np.int8),
        np.array(steps),
        np.zeros(len(tokens), bool),
    )


ROWS = [
    row([1, 2, 3, 4, 5, 6, 7], [C, R, R, A, A, O, A], [0, 1, 1, 1, 1, 1, 2]),
    row([1, 3, 4], [C, R, A], [0, 1, 1]),
]


class Scripted(nn.Module):
    """Its 'hidden states' are logits: ``sharpness`` on the token that ``rule`` predicts."""

    def __init__(self, rule, sharpness=20.0):
        super().__init__()
        self.rule, self.sharpness = rule, sharpness

    def forward(self, tokens):
        return self.sharpness * nn.functional.one_hot(self.rule(tokens), VOCAB).float()


HEAD = Head(torch.eye(VOCAB))


def evaluator(decode=lambda ids: " ".join(f"w{i}" for i in ids), **kwargs):
    return HeldoutEvaluator(ROWS, pad_id=0, decode=decode, **kwargs)


def hidden_rows(model):
    """A live teacher's view of a batch."""
    return lambda batch, chosen: HiddenRows(model(batch.tokens_BS)[chosen], HEAD)


def top_k_rows(model, k):
    """The same teacher, written down as its top tokens."""
    return lambda batch, chosen: TopKRows.from_logits(model(batch.tokens_BS)[chosen], k)


def successor(tokens):
    return (tokens + 1) % VOCAB


def test_perfect_model_matches_every_action_but_the_unpredictable():
    # row 2's REASON token 3 does not follow 1; its action 4 does follow 3
    scores = evaluator().score(Scripted(successor), HEAD).to_dict()
    assert scores["action_match"] == 1.0
    assert scores["actions"] == 3
    assert scores["ce_act"] == pytest.approx(0.0, abs=1e-4)
    assert scores["ce_reason"] == pytest.approx(20 / 3, abs=1e-2)  # one of three is wrong


def test_copying_the_input_matches_nothing():
    assert evaluator().score(Scripted(lambda t: t), HEAD).to_dict()["action_match"] == 0.0


def test_case_and_blanks_do_not_count():
    words = ["", "", "", "", "Go", "go ", "x", "X"]
    found = evaluator(decode=lambda ids: words[ids[0]])
    # predicts 5 for 4 ("go " for "Go"), 5 for 5, 6 for 7 ("x" for "X")
    rule = lambda t: torch.tensor([0, 0, 0, 5, 5, 0, 6, 0])[t]  # noqa: E731
    assert found.score(Scripted(rule), HEAD).to_dict()["action_match"] == 1.0


def test_kl_against_the_teacher_and_its_entropy():
    scorer = evaluator(batch_size=1, chunk_tokens=2)
    flat = Scripted(successor, sharpness=0.0)
    teacher = teacher_row(scorer.score_teacher(hidden_rows(flat), torch.device("cpu")))
    assert teacher["entropy"] == pytest.approx(math.log(VOCAB))
    assert scorer.score(flat, HEAD).to_dict()["kl_act"] == pytest.approx(0.0, abs=1e-6)
    sharp = scorer.score(Scripted(successor, sharpness=5.0), HEAD).to_dict()
    logits = torch.zeros(VOCAB)
    logits[0] = 5.0
    expected = -math.log(VOCAB) - logits.log_softmax(-1).mean()
    assert sharp["kl_act"] == pytest.approx(float(expected), rel=1e-4)


def test_kl_by_step_is_the_mean_of_each_step_and_kind():
    scorer = evaluator(batch_size=1, chunk_tokens=2)
    flat = Scripted(successor, sharpness=0.0)
    scorer.score_teacher(hidden_rows(flat), torch.device("cpu"))
    scores = scorer.score(Scripted(successor, sharpness=5.0), HEAD).to_dict()
    first, second = scores["kl_by_step"]
    # step 1 holds three REASON and three ACT tokens of two rows; step 2 one ACT token
    assert (first["step"], first["tokens"]) == (1, 6)
    assert (second["step"], second["tokens"], "reason" in second) == (2, 1, False)
    assert first["reason"] == pytest.approx(scores["kl_reason"])
    assert second["act"] == pytest.approx(scores["kl_act"])


def test_late_steps_count_as_the_last_one():
    scores = HeldoutScores()
    steps = torch.tensor([1, MAX_STEPS, MAX_STEPS + 9])
    scores.add_steps(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 2, 2]), steps)
    assert scores.kl_by_step() == [
        {"step": 1, "reason": 1.0, "tokens": 1},
        {"step": MAX_STEPS, "act": 3.0, "tokens": 2},
    ]


def test_without_a_teacher_there_is_no_kl_by_step():
    assert "kl_by_step" not in evaluator().score(Scripted(successor), HEAD).to_dict()


def test_top_k_teacher_gives_kl_and_entropy_of_its_buckets():
    """With one token in the tail the buckets lose nothing."""
    flat, student = Scripted(successor, sharpness=1.0), Scripted(successor, sharpness=5.0)
    exact, cached = evaluator(), evaluator(batch_size=1)
    exact_row = teacher_row(exact.score_teacher(hidden_rows(flat), torch.device("cpu")))
    rows = top_k_rows(flat, VOCAB - 1)
    cached_row = teacher_row(cached.score_teacher(rows, torch.device("cpu")))
    assert cached_row["entropy"] == pytest.approx(exact_row["entropy"])
    assert "ce" not in cached_row
    kl = [e.score(student, HEAD).to_dict()["kl_act"] for e in (exact, cached)]
    assert kl[1] == pytest.approx(kl[0], rel=1e-5)


def test_ranks_together_score_what_one_scores():
    whole = evaluator().score(Scripted(successor), HEAD).to_dict()
    sums = []
    for rank in range(2):
        evaluator(rank=rank, world=2, reduce=lambda t: sums.append(t.clone())).score(
            Scripted(successor), HEAD
        )
    matched = sums[1] + sums[4]  # every rank sums three tensors, the second counts actions
    assert matched.tolist() == [whole["actions"], whole["actions"]]


def test_score_leaves_the_training_mode_as_it_was():
    model = Scripted(successor).train()
    evaluator().score(model, HEAD)
    assert model.training


def test_table_has_dashes_for_what_a_row_lacks():
    table = format_table({"a": {"kl_act": 1.0, "ce": 2.0}, "teacher": {"ce": 0.5}})
    assert table.splitlines()[2].split() == ["teacher", "-", "0.500"]
