"""Generation: greedy and sampled, stopped in the right place, constrained to choices."""

import math
import random

import pytest
import torch

from sad_components.evaluation.decoding import CachedDecoder, FullDecoder, Prefix
from sad_components.evaluation.generation import Generator, Prompt


def never(text):
    return None


def prompt(tokenizer, text="Do it.\n", session=0, end=never, stop_ids=(), choices=None, seed=0):
    return Prompt(
        session,
        tokenizer.encode_text(text)[0],
        random.Random(seed),
        end,
        frozenset(stop_ids),
        choices,
    )


class Scripted:
    """Logits that spell given tokens, one script a session."""

    max_seq_len = 100

    def __init__(self, scripts, prompts):
        self._scripts, self._start = scripts, [len(p.token_ids) for p in prompts]

    def logits(self, prefixes):
        out = torch.zeros(len(prefixes), 512)
        for row, (session, ids) in enumerate(prefixes):
            out[row, self._scripts[session][len(ids) - self._start[session]]] = 50.0
        return out


def spell(tokenizer, text, **options):
    one = prompt(tokenizer, **options)
    script = [*tokenizer.encode_text(text)[0], *[7] * 50]
    return Generator(Scripted([script], [one]), tokenizer, 40).generate([one])[0]


def test_greedy_is_argmax_of_the_plain_model(tiny_model, tokenizer):
    one = prompt(tokenizer)
    ids = list(one.token_ids)
    for _ in range(12):
        logits = FullDecoder(tiny_model, tokenizer.vocab_size).logits([Prefix(0, ids)])
        ids.append(int(logits.argmax()))
    made = Generator(CachedDecoder(tiny_model, tokenizer.vocab_size), tokenizer, 12).generate([one])
    assert made[0].token_ids == ids[len(one.token_ids) :]
    assert not made[0].stopped


def test_logprobs_are_the_models_own(tiny_model, tokenizer):
    one = prompt(tokenizer, choices=lambda text: [" go to x"])
    made = Generator(FullDecoder(tiny_model), tokenizer, 3, temperature=0.5).generate([one])[0]
    ids = list(one.token_ids)
    for token, logprob in zip(made.token_ids, made.logprobs, strict=True):
        with torch.no_grad():
            wanted = torch.log_softmax(tiny_model(torch.tensor([ids]))[0, -1], -1)[token]
        assert math.isclose(logprob, float(wanted), rel_tol=1e-4)
        ids.append(token)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_company_changes_nothing(tiny_model, tokenizer, temperature):
    def ask(seeds):
        prompts = [prompt(tokenizer, "Do it. " * (1 + s) + "\n", session=s, seed=s) for s in seeds]
        model = CachedDecoder(tiny_model, tokenizer.vocab_size)
        made = Generator(model, tokenizer, 16, temperature).generate(prompts)
        model.close()
        return {s: g.token_ids for s, g in zip(seeds, made)}

    together = ask([0, 1, 2, 3])
    alone = {}
    for s in (3, 1, 0, 2):
        alone |= ask([s])
    assert together == alone


def test_sampling_follows_the_distribution(tokenizer):
    class Even:
        max_seq_len = 10

        def logits(self, prefixes):
            logits = torch.full((len(prefixes), 512), -100.0)
            logits[:, 10], logits[:, 20] = 0.0, math.log(3)
            return logits

    prompts = [prompt(tokenizer, "a", session=s, seed=s) for s in range(400)]
    made = Generator(Even(), tokenizer, 1, temperature=1.0).generate(prompts)
    tokens = [g.token_ids[0] for g in made]
    assert set(tokens) == {10, 20}
    assert 0.68 < tokens.count(20) / 400 < 0.82


def test_ends_where_the_text_ends(tokenizer):
    made = spell(tokenizer, "Action: go\n", end=lambda t: t.find("\n") + 1 or None)
    assert made.text == "Action: go\n"
    assert made.stopped
    assert tokenizer.decode(made.token_ids) == made.text


def test_tokens_behind_the_end_are_dropped(tokenizer):
    end = lambda t: t.index("\nObservation:") + 1 if "\nObservation:" in t else None  # noqa: E731
    made = spell(tokenizer, "Action: go\nObservation: You win.", end=end)
    assert made.text == "Action: go\n" == tokenizer.decode(made.token_ids)
    assert len(made.logprobs) == len(made.token_ids)


def test_a_stop_token_ends_and_is_kept(tokenizer):
    stop = tokenizer.special["<|im_end|>"]
    one = prompt(tokenizer, stop_ids={stop})
    script = [*tokenizer.encode_text("Hi")[0], stop, 7, 7]
    made = Generator(Scripted([script], [one]), tokenizer, 20).generate([one])[0]
    assert made.stopped
    assert made.token_ids[-1] == stop
    assert made.text == "Hi"


def test_choices_are_kept_to_whatever_the_model_wants(tiny_model, tokenizer):
    texts = [" go to cabinet 12\n", " take mug 1 from shelf 2\n"]

    def choices(text):
        return [t[len(text) :] for t in texts if t.startswith(text)]

    for seed in range(5):
        one = prompt(
            tokenizer,
            choices=choices,
            end=lambda t: len(t) if t.endswith("\n") else None,
            seed=seed,
        )
        made = Generator(FullDecoder(tiny_model), tokenizer, 40, temperature=1.0).generate([one])[0]
        assert made.text in texts


def test_a_finished_choice_leaves_only_the_stop_token(tiny_model, tokenizer):
    stop = tokenizer.special["<|im_end|>"]
    one = prompt(tokenizer, choices=lambda t: [" hi"[len(t) :]], stop_ids={stop})
    made = Generator(FullDecoder(tiny_model), tokenizer, 20).generate([one])[0]
    assert (made.text, made.token_ids[-1], made.stopped) == (" hi", stop, True)


def test_a_full_model_writes_nothing(tiny_model, tokenizer):
    one = prompt(tokenizer)
    one.token_ids = [5] * 1024
    assert Generator(FullDecoder(tiny_model), tokenizer).generate([one])[0].token_ids == []


def test_settings_that_cannot_be(tiny_model, tokenizer):
    with pytest.raises(ValueError, match="at least 1 and temperature at least 0; got 0 and 0"):
        Generator(FullDecoder(tiny_model), tokenizer, 0)
