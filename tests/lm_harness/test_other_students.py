"""Quantised and exported students as lm-eval's model."""

from __future__ import annotations

import pytest
import torch
from exports import facts, needs_executorch, write_student
from lm_eval.api.instance import Instance

from sad_components.lm_harness.model import SadLM
from sad_components.models.quantized import Scheme, load_quantized, quantize_folder

ASKED = [
    ("You see a cup 1.\n", "Thought: I take it."),
    ("You see a cup 1.\n", "Thought: I take it.\nAction: take cup 1\n"),
    ("", "Action: open drawer 1"),
]
WRITTEN = [("You see a cup 1.\n", {"until": ["\n"], "max_gen_toks": 8}), ("Task:", {"until": []})]


def scores(model: SadLM) -> list[tuple[float, bool]]:
    requests = [Instance("loglikelihood", {}, args, i) for i, args in enumerate(ASKED)]
    return model.loglikelihood(requests, disable_tqdm=True)


def texts(model: SadLM) -> list[str]:
    requests = [
        Instance("generate_until", {}, (context, {"max_gen_toks": 8, **settings}), i)
        for i, (context, settings) in enumerate(WRITTEN)
    ]
    return model.generate_until(requests, disable_tqdm=True)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return write_student(tmp_path_factory.mktemp("student") / "student")


def test_a_quantised_folder(student, tmp_path):
    folder = quantize_folder(student, tmp_path / "int4", Scheme("int4", 16))
    model = SadLM(str(folder))
    assert model.get_model_info()["model_kind"] == "quantized"
    whole = SadLM(str(student), dtype="float32")
    for (ours, _), (theirs, _) in zip(scores(model), scores(whole), strict=True):
        assert ours != theirs
        assert ours == pytest.approx(theirs, rel=0.2)
    context, continuation = ASKED[0]
    ids = model.tok_encode(context + continuation)
    count = len(model.tok_encode(context.rstrip()))  # lm-eval moves the newline over
    with torch.no_grad():
        logits = load_quantized(folder).eval()(torch.tensor([ids[:-1]]))[0].float()
    wanted = torch.tensor(ids[count:])
    rows = torch.log_softmax(logits[count - 1 :], -1)
    assert scores(model)[0][0] == pytest.approx(float(rows.gather(1, wanted[:, None]).sum()), 1e-4)
    with pytest.raises(ValueError, match="dtype is auto"):
        SadLM(str(folder), dtype="bfloat16")


@needs_executorch
def test_a_pte_gives_the_students_answers(student, tmp_path):
    from sad_components.export.variants import Variant
    from sad_components.export.writer import write_executorch

    folder = tmp_path / "fp32"
    folder.mkdir()
    write_executorch(folder, facts(student), Variant(), "fp32", max_seq_len=96, prefill_tokens=16)
    exported, eager = SadLM(str(folder), batch_size=2), SadLM(str(student), dtype="float32")
    assert exported.get_model_info()["model_kind"] == "executorch"
    assert exported.max_length == 96
    for (ours, greedy), (theirs, expected) in zip(scores(exported), scores(eager), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
        assert greedy == expected
    assert texts(exported) == texts(eager)
    assert exported.tokenizer.chat_template == eager.tokenizer.chat_template
