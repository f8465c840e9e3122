"""Embeddings of one family padded to different sizes: padding gets no probability, exactly."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from sad_components.data import HFTokenizer
from sad_components.data.batch import Batch
from sad_components.data.shipped import resolve_folder
from sad_components.loss import HiddenRows, StructuredKDLoss
from sad_components.models import from_scratch
from sad_components.models.hidden import head_of, stop_at_hidden, vocab_size_of
from sad_components.models.last_layer import hidden_at
from sad_components.training.teachers import LiveTeacher
from sad_components.training.vocabulary import check_tokenizers, shared_vocab_size

TOKENIZER, STUDENT, TEACHER = 83, 97, 101
QWEN = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}


def model(vocab_size: int, seed: int):
    """In float64, with logits far from flat."""
    built = from_scratch({**QWEN, "vocab_size": vocab_size}, seed=seed).double()
    with torch.no_grad():
        built.output.weight.mul_(40)
    return built


def batch() -> Batch:
    """One row of 8 tokens: half of the targets REASON (1), half ACT (2)."""
    tokens = torch.randint(TOKENIZER, (1, 9), generator=torch.Generator().manual_seed(0))
    kinds = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2]])
    nothing = torch.zeros(1, 8, dtype=torch.long)
    return Batch(tokens[:, :-1], tokens[:, 1:], kinds, nothing, nothing.bool(), places=[])


def test_padding_of_the_wider_embedding_gets_no_probability():
    """The recipe's path, against KL by hand on the ids that both models have."""
    student, teacher = model(STUDENT, seed=1), model(TEACHER, seed=2)
    given, loss = batch(), StructuredKDLoss()
    with torch.no_grad():
        p = student(given.tokens_BS)[0].double().log_softmax(-1)
        q = teacher(given.tokens_BS)[0, :, :STUDENT].double().log_softmax(-1)
    expected = (q.exp() * (q - p)).sum(-1)

    live = LiveTeacher(teacher)
    vocab = shared_vocab_size(vocab_size_of(student), live.vocab_size, TOKENIZER)
    live.cut_vocab(vocab)
    assert vocab == STUDENT
    chosen = loss.spec.supervised(given.span_ids_BS, given.branch_BS)
    output = loss.from_hidden(
        HiddenRows(
            hidden_at(stop_at_hidden(student), given.tokens_BS, chosen), head_of(student, vocab)
        ),
        live.rows(given, chosen),
        given.targets_BS[chosen],
        given.span_ids_BS[chosen],
        given.branch_BS[chosen],
        counts=loss.spec.count(given.span_ids_BS, given.branch_BS),
    )
    by_hand = expected[:4].mean() + expected[4:].mean()
    assert expected.mean() > 0.1
    torch.testing.assert_close(output.loss.double(), by_hand, atol=1e-6, rtol=1e-6)
    output.loss.backward()
    assert student.output.weight.grad.abs().sum() > 0


def test_the_narrower_one_may_be_either():
    assert shared_vocab_size(151_936, 152_064, 151_665) == 151_936  # Qwen2.5 0.5B from 7B
    assert shared_vocab_size(152_064, 151_936, 151_665) == 151_936
    assert shared_vocab_size(50_257, None, 50_257) == 50_257


@pytest.mark.parametrize(("student", "teacher", "who"), [(97, 80, "teacher"), (80, 97, "student")])
def test_models_of_another_tokenizer_are_refused(student, teacher, who):
    message = rf"{who} vocab 80 < tokenizer vocab 83 \(student {student}, teacher {teacher}\)"
    with pytest.raises(ValueError, match=message + ".*shared vocabulary"):
        shared_vocab_size(student, teacher, TOKENIZER)


def test_a_tokenizer_of_equal_size_with_other_ids_is_refused(tmp_path):
    """As OPT's is to GPT-2's: the same pieces of text, numbered otherwise."""
    tokenizer = HFTokenizer("shipped:household/tokenizer")
    same, other = tmp_path / "same", tmp_path / "other"
    shutil.copytree(resolve_folder("shipped:household/tokenizer"), same)
    shutil.copytree(same, other)
    content = json.loads((other / "tokenizer.json").read_text())
    ids = content["model"]["vocab"]
    letters = [name for name in ids if len(name) == 1]
    ids |= dict(zip(letters, [ids[name] for name in reversed(letters)]))
    (other / "tokenizer.json").write_text(json.dumps(content))
    assert HFTokenizer(str(other)).vocab_size == tokenizer.vocab_size

    check_tokenizers(tokenizer, [same, None, tmp_path / "no tokenizer there"])
    with pytest.raises(ValueError, match="other holds a tokenizer that gives a text other ids"):
        check_tokenizers(tokenizer, [same, other])
