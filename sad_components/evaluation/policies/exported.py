"""An exported student plays, in the runtime that it was exported for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sad_components.evaluation.generation import Generation, Generator, Prompt
from sad_components.evaluation.policies.local import ModelPolicy
from sad_components.export import load_exported


class SessionGenerator(Generator):
    """Writes as many continuations side by side as its model keeps sessions.

    With more prompts than sessions, groups of them are written one after the other: each prompt is
    then read once for its turn, not anew for every token. What comes out is the same.

    Args:
        model: gives the logits; ``sessions`` sequences keep their caches in it.
        sessions: how many.
        rest: as for ``Generator``.
    """

    def __init__(self, model: Any, sessions: int, *rest: Any, **options: Any) -> None:
        super().__init__(model, *rest, **options)
        self._sessions = sessions

    def generate(self, prompts: Sequence[Prompt]) -> list[Generation]:
        """A continuation of every prompt, in order."""
        out: list[Generation] = []
        for first in range(0, len(prompts), self._sessions):
            out += super().generate(prompts[first : first + self._sessions])
        return out


def exported_policy(
    path: str,
    *,
    sessions: int = 8,
    threads: int | None = None,
    temperature: float = 0.0,
    max_new_tokens: int = 128,
    constrain: bool = False,
    name: str = "exported",
) -> ModelPolicy:
    """A policy of an exported folder; tokenizer and style come from its manifest.

    Args:
        path: the folder (``sad export`` makes it).
        sessions: episodes whose keys and values are kept. A ``.pte`` holds one sequence, so each
            has an instance of the program of its own; of more episodes than that, each transcript
            is read anew at every turn.
        threads: the runtime computes with; None: as many as torch has.
        temperature: 0 is greedy.
        max_new_tokens: most tokens of a turn.
        constrain: actions come out of the admissible ones, where the environment lists them.
        name: what results call it.

    Raises:
        ImportError: the runtime is not installed.
        ValueError: the folder is damaged or incomplete; the message names the file.
    """
    student = load_exported(path, sessions=sessions, threads=threads)
    generator = SessionGenerator(student, sessions, student.tokenizer, max_new_tokens, temperature)
    return ModelPolicy(generator, student.transform, constrain, name)
