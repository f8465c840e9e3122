"""TextWorld's engine made to do things once that it does at every use; its texts stay the same."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from typing import Any


@functools.cache
def memoise_parsers() -> None:
    """Makes the engine parse each rule of a grammar, and each query, once a process.

    Raises:
        ImportError: the engine is not installed.
    """
    from textworld.envs.pddl import textgen
    from textworld.logic import Rule

    parse = functools.lru_cache(maxsize=8192)(textgen._parse_and_convert)
    # a copy: the engine writes contexts into the symbols
    textgen._parse_and_convert = lambda *args, **kwargs: copy.deepcopy(parse(*args, **kwargs))
    # a rule of a query is only read
    Rule.parse_conjunctive_query = staticmethod(
        functools.lru_cache(maxsize=8192)(Rule.parse_conjunctive_query)
    )


@contextlib.contextmanager
def translated_once() -> Iterator[None]:
    """Within it a loaded game is translated once, not a second time for the engine's own planner.

    A state made within it plays as ever, but its ``replan`` searches a larger space.
    """
    import fast_downward

    translate = fast_downward.pddl2sas
    done: dict[tuple[str, str], Any] = {}

    def translate_or_recall(domain: str, problem: str, verbose: bool = False, **_: Any) -> Any:
        if (domain, problem) not in done:
            done[domain, problem] = translate(domain, problem, verbose=verbose)
        return done[domain, problem]

    fast_downward.pddl2sas = translate_or_recall
    try:
        yield
    finally:
        fast_downward.pddl2sas = translate
