"""What is done once in TextWorld's engine, and that nothing is left behind."""

import importlib.util

import pytest

from sad_components.envs.household import HouseholdEnv, sample_game
from sad_components.envs.household.textworld_speed import memoise_parsers, translated_once

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("alfworld", "textworld")),
    reason="household extra not installed",
)


def test_a_game_is_translated_once_and_the_engine_is_put_back(monkeypatch):
    import fast_downward

    calls = []
    original = fast_downward.pddl2sas

    def counting(*args, **kwargs):
        calls.append(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(fast_downward, "pddl2sas", counting)
    HouseholdEnv().reset(sample_game(8))
    assert len(calls) == 1
    assert fast_downward.pddl2sas is counting


def test_the_engine_is_put_back_after_an_error(monkeypatch):
    import fast_downward

    original = fast_downward.pddl2sas
    with pytest.raises(ZeroDivisionError), translated_once():
        raise ZeroDivisionError
    assert fast_downward.pddl2sas is original


def test_a_memoised_parse_is_a_copy():
    memoise_parsers()
    from textworld.envs.pddl import textgen

    first, second = (
        textgen._parse_and_convert("You see {o}.", rule_name="symbols") for _ in range(2)
    )
    assert [str(symbol) for symbol in first] == [str(symbol) for symbol in second]
    assert all(a is not b for a, b in zip(first, second, strict=True))
