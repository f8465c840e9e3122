"""``--model sad`` gives what lm-eval's own ``hf`` gives on the same weights."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_students import make_student

from sad_components.data import HFTokenizer
from sad_components.lm_harness.model import SadLM
from sad_components.lm_harness.students import load_tokenizer

WORDS = "Thought: I need a spatula.\nAction: go to drawer 2\nThe cabinet 1 is closed. "
CONTINUATIONS = [
    ("You see a cup 1.\n", "Thought: I take it."),
    ("You see a cup 1.\n", "Thought: I take it.\nAction: take cup 1 from drawer 2\n"),
    ("You see a cup 1. ", "Action"),  # the blank goes over to the continuation
    ("", "Action: open drawer 1"),
    ("<|im_start|>user\nhi<|im_end|>\n", "x"),
    (WORDS * 30, "Action: go to fridge 1"),  # more than the model reads
    (WORDS, "a"),
    (WORDS, "b"),
]


def asked(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


@pytest.fixture(scope="module", params=["smollm2", "gpt2", "opt", "qwen3-8b"])
def pair(request, tmp_path_factory) -> tuple[SadLM, HFLM]:
    folder = str(make_student(request.param, tmp_path_factory.mktemp("pair")))
    tokenizer = load_tokenizer(folder)  # AutoTokenizer would cut texts by the family's own rule
    hf = HFLM(folder, tokenizer=tokenizer, device="cpu", batch_size=3)
    return SadLM(folder, batch_size=3), hf


class TestEqualsHF:
    def test_loglikelihood(self, pair):
        ours, theirs = (
            model.loglikelihood(asked("loglikelihood", *CONTINUATIONS), disable_tqdm=True)
            for model in pair
        )
        assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
        torch.testing.assert_close(
            torch.tensor([ll for ll, _ in ours]), torch.tensor([ll for ll, _ in theirs])
        )

    def test_greedy_continuations_are_seen_as_such(self, pair):
        (written,) = pair[0].generate_until(
            asked("generate_until", (WORDS, {"until": [], "max_gen_toks": 3})), disable_tqdm=True
        )
        requests = asked("loglikelihood", (WORDS, written), (WORDS, "zzz"))
        ours, theirs = (model.loglikelihood(requests, disable_tqdm=True) for model in pair)
        assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]

    def test_rolling_windows(self, pair):
        requests = asked("loglikelihood_rolling", (WORDS,), (WORDS * 25,), ("a",))
        ours, theirs = (m.loglikelihood_rolling(requests, disable_tqdm=True) for m in pair)
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs))

    @pytest.mark.parametrize("until", [[], ["\n"], "e", ["zz", "o", "a"]])
    def test_generation(self, pair, until):
        settings = {"until": until, "max_gen_toks": 24, "do_sample": False}
        contexts = [WORDS, "You see a cup 1.\n", WORDS * 30]
        ours, theirs = (
            # one at a time: hf cuts the shorter texts of a batch as if they were as long
            [
                m.generate_until(asked("generate_until", (c, dict(settings))), disable_tqdm=True)
                for c in contexts
            ]
            for m in pair
        )
        assert ours == theirs


class TestModel:
    def test_is_registered_without_an_import_of_ours(self, student):
        code = (
            "import torch\n"
            "from lm_eval.api.registry import get_model\n"
            "print(get_model('sad').__module__, get_model('dummy').__name__)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.split() == ["sad_components.lm_harness.model", "DummyLM"], done.stderr

    def test_tokens_are_those_of_the_file(self, tmp_path):
        """transformers' AutoTokenizer cuts the texts of a Qwen by Qwen's rule, whatever it says."""
        folder = make_student("qwen2.5-0.5b", tmp_path / "student")
        file = folder / "tokenizer.json"
        content = json.loads(file.read_text())
        (_, byte_level) = content["pre_tokenizer"]["pretokenizers"]
        content["pre_tokenizer"] = byte_level  # digits stay together
        file.write_text(json.dumps(content))
        text = "go to drawer 12 and 1,345 cups. "
        expected, _ = HFTokenizer(str(folder)).encode_text(text)
        assert load_tokenizer(folder).encode(text) == expected

    def test_registered_here(self):
        assert get_model("sad") is SadLM

    def test_batches_do_not_change_answers(self, student):
        requests = asked("loglikelihood", *CONTINUATIONS)
        one, many, auto = (
            SadLM(str(student), batch_size=size).loglikelihood(requests, disable_tqdm=True)
            for size in (1, 4, "auto")
        )
        for other in (many, auto):
            torch.testing.assert_close(torch.tensor(one), torch.tensor(other))

    def test_batched_generation_equals_single(self, student):
        settings = {"until": ["\n"], "max_gen_toks": 12}
        contexts = [WORDS, "You see a cup 1.\n", "a", WORDS * 2]
        requests = asked("generate_until", *((c, settings) for c in contexts))
        one, four = (
            SadLM(str(student), batch_size=size).generate_until(requests, disable_tqdm=True)
            for size in (1, 4)
        )
        assert one == four

    def test_scores_after_generating(self, student):
        model = SadLM(str(student))
        requests = asked("loglikelihood", *CONTINUATIONS)
        before = model.loglikelihood(requests, disable_tqdm=True)
        model.generate_until(
            asked("generate_until", (WORDS, {"until": ["\n"], "max_gen_toks": 8})),
            disable_tqdm=True,
        )
        assert model.loglikelihood(requests, disable_tqdm=True) == before

    def test_sampling_is_seeded_and_is_not_greedy(self, student):
        settings = {"until": [], "max_gen_toks": 16, "do_sample": True, "temperature": 5.0}
        requests = asked("generate_until", (WORDS, settings))
        texts = [
            SadLM(str(student), seed=seed).generate_until(requests, disable_tqdm=True)
            for seed in (0, 0, 1)
        ]
        assert texts[0] == texts[1] != texts[2]

    def test_chat_template(self, student):
        model, theirs = SadLM(str(student)), HFLM(str(student), device="cpu")
        chat = [{"role": "user", "content": "hi"}]
        assert model.apply_chat_template(chat) == theirs.apply_chat_template(chat)
        chat.append({"role": "assistant", "content": "Thought:"})
        assert model.apply_chat_template(chat, False) == theirs.apply_chat_template(chat, False)
        assert model.chat_template(True) == theirs.chat_template(True)
        assert model.tokenizer_name == theirs.tokenizer_name

    def test_a_stop_that_is_a_control_token(self, student):
        """Its text is in no decoded text; the token itself ends the generation."""
        model = SadLM(str(student))
        prompt = model._prompt(0, "a", ["<|im_start|>", "\n"], 4)
        assert model.tokenizer.convert_tokens_to_ids("<|im_start|>") in prompt.stop_ids
        assert model.eot_token_id in prompt.stop_ids
        assert prompt.end("go\nto") == 2

    def test_a_stop_that_is_no_token_ends_nothing_at_the_unknown_token(self, student):
        model = SadLM(str(student))
        model.tokenizer.unk_token = "<|im_start|>"  # what texts that are no token are taken for
        assert model.tokenizer.convert_tokens_to_ids("no token") == model.tokenizer.unk_token_id
        assert model._prompt(0, "a", ["no token"], 4).stop_ids == frozenset(model._stop_ids)

    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({"top_p": 0.5}, "top_p=0.5"),
            ({"num_beams": 4}, "num_beams=4"),
            ({"max_gen_toks": 256}, "less than the model's 256"),
        ],
    )
    def test_settings_that_are_not_understood_are_refused(self, student, settings, says):
        with pytest.raises(ValueError, match=says):
            SadLM(str(student)).generate_until(
                asked("generate_until", ("a", {"until": [], **settings})), disable_tqdm=True
            )

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ({"revision": "main"}, "takes no revision"),
            ({"batch_size": "many"}, "batch_size is an integer"),
            ({"dtype": "int3"}, "dtype is auto"),
            ({"max_length": 10_000}, "max_length is 1 to 256"),
        ],
    )
    def test_arguments_that_are_not_understood_are_refused(self, student, arguments, says):
        with pytest.raises(ValueError, match=says):
            SadLM(str(student), **arguments)

    def test_a_continuation_that_does_not_fit(self, student):
        with pytest.raises(ValueError, match="1 to 256 tokens"):
            SadLM(str(student)).loglikelihood(
                asked("loglikelihood", ("a", WORDS * 30)), disable_tqdm=True
            )
