"""The cached decoder against the plain one, on sequences that grow, shrink and share a cache."""

import random

import pytest
import torch
from torch import nn

from sad_components.evaluation.decoding import CachedDecoder, FullDecoder, Prefix

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def sequence(length, seed=0):
    rng = random.Random(seed)
    return [rng.randrange(512) for _ in range(length)]


def expected(model, prefixes):
    with torch.no_grad():
        return torch.stack([model(torch.tensor([p.token_ids]))[0, -1] for p in prefixes])


@pytest.fixture
def both(tiny_model):
    """Asks the cached decoder and, with the caches off, the plain one."""
    cached = CachedDecoder(tiny_model)

    def ask(*prefixes):
        got = cached.logits(prefixes)
        with cached.plain() as plain:
            wanted = FullDecoder(plain).logits(prefixes)
        return got, wanted

    return ask


def test_reference_is_the_model_itself(tiny_model):
    prefixes = [Prefix(0, sequence(7)), Prefix(1, sequence(3, 1))]
    assert torch.equal(FullDecoder(tiny_model).logits(prefixes), expected(tiny_model, prefixes))


def test_ragged_growth(tiny_model):
    wanted, prefixes_by_round = [], []
    grown = {session: sequence(3 + 11 * session, session) for session in range(4)}
    rng = random.Random(9)
    for turn in range(12):
        active = [s for s in grown if turn < 6 or s != 2]  # one stops early
        rng.shuffle(active)
        prefixes = [Prefix(s, list(grown[s])) for s in active]
        prefixes_by_round.append(prefixes)
        wanted.append(expected(tiny_model, prefixes))
        for s in active:
            grown[s] += sequence(rng.choice([1, 1, 5]), turn * 10 + s)
    cached = CachedDecoder(tiny_model, prefill_tokens=32)
    for prefixes, logits in zip(prefixes_by_round, wanted):
        torch.testing.assert_close(cached.logits(prefixes), logits, **CLOSE)


def test_single_tokens_around_a_gap(tiny_model):
    grown = {session: sequence(4 + session, session) for session in range(5)}
    rounds = [[0, 1, 2, 3, 4], [4, 1, 2], [0, 3, 4], [1, 4], [0, 1, 2, 3, 4]]
    calls = []
    for number, active in enumerate(rounds):
        calls.append([Prefix(s, list(grown[s])) for s in active])
        for s in active:
            grown[s] += sequence(1, number * 10 + s)
    wanted = [expected(tiny_model, prefixes) for prefixes in calls]
    cached = CachedDecoder(tiny_model)
    for prefixes, logits in zip(calls, wanted):
        torch.testing.assert_close(cached.logits(prefixes), logits, **CLOSE)


def test_a_changed_history_is_read_again(both):
    base = sequence(40)
    torch.testing.assert_close(*both(Prefix(0, base)), **CLOSE)
    for other in ([*base[:20], 5, 6, 7], base[:10], base, [*base, 1]):
        torch.testing.assert_close(*both(Prefix(0, other)), **CLOSE)


def test_sessions_come_and_go(tiny_model):
    prefixes = [Prefix(s, sequence(5 + s, s)) for s in range(7)]
    wanted = expected(tiny_model, prefixes)
    cached = CachedDecoder(tiny_model)
    for chunk in ([0, 1], [2, 3], [4, 0, 6], [1, 5], [6], [3, 2, 1, 0]):
        got = cached.logits([prefixes[i] for i in chunk])
        torch.testing.assert_close(got, wanted[chunk], **CLOSE)


def test_only_what_is_new_is_read(tiny_model, monkeypatch):
    cached = CachedDecoder(tiny_model)
    read = []
    embed = tiny_model.tok_embeddings.forward
    monkeypatch.setattr(
        tiny_model.tok_embeddings, "forward", lambda t: read.append(t.numel()) or embed(t)
    )
    history = sequence(300)
    cached.logits([Prefix(0, history)])
    cached.logits([Prefix(0, [*history, 1])])
    cached.logits([Prefix(0, [*history, 1, 2, 3])])
    assert read == [300, 1, 2]


def test_the_model_comes_back_as_it_was(tiny_model):
    tokens = torch.tensor([sequence(9)])
    before = tiny_model(tokens)
    cached = CachedDecoder(tiny_model)
    cached.logits([Prefix(0, sequence(4))])
    with cached.plain() as model:
        assert torch.equal(model(tokens), before)
    cached.logits([Prefix(0, sequence(4))])
    cached.close()
    assert torch.equal(tiny_model(tokens), before)
    assert list(tiny_model.state_dict()) == [
        name for name in tiny_model.state_dict() if "cache" not in name
    ]


def test_the_vocabulary_is_cut_to_the_tokenizers(tiny_model):
    assert CachedDecoder(tiny_model, 500).logits([Prefix(0, [1, 2])]).shape == (1, 500)


def test_too_long_a_sequence_is_an_error(tiny_model):
    with pytest.raises(ValueError, match="at most 1024 tokens; got a sequence of 1025"):
        CachedDecoder(tiny_model).logits([Prefix(0, sequence(1025))])


def test_the_longest_sequence_fits(both):
    torch.testing.assert_close(*both(Prefix(0, sequence(1024))), **CLOSE)


def test_a_model_without_attention_to_cache_is_an_error(tiny_model):
    tiny_model.layers = nn.ModuleList([nn.Identity()])
    with pytest.raises(ValueError, match="use FullDecoder"):
        CachedDecoder(tiny_model)
