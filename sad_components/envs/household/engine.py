"""The games played in TextWorld's engine, the fast way.

ALFWorld's own stack parses domain and grammar for every game, translates every game twice and
renders every admissible command at every step. Here all games share one parsed ``GameLogic``, a
game is translated once, and each ground action's command is rendered once per game. Texts and
rules stay the engine's own; a test plays both side by side.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from sad_components.envs.household.games import Game, sample_game
from sad_components.envs.household.pddl import (
    MISSING_EXTRA,
    domain_and_grammar,
    entity_ids,
    problem_text,
    task_sentence,
)
from sad_components.envs.household.textworld_speed import memoise_parsers, translated_once

NOTHING_HAPPENS = "Nothing happens."

_BANNER = "-= Welcome to TextWorld, ALFRED! =-"
_UNKNOWN_TASK = "UNKNOWN GOAL"


class HouseholdEnv:
    """One household game at a time: text in, text out.

    Args:
        max_steps: actions after which an episode ends unwon (the engine itself has no limit).

    Raises:
        ImportError: the ``household`` extra is not installed.
        ValueError: ``max_steps`` below 1.

    Example:
        >>> env = HouseholdEnv()
        >>> room_and_task = env.reset(0, "heldout")
        >>> observation, reward, done, info = env.step("go to cabinet 1")
    """

    def __init__(self, max_steps: int = 50) -> None:
        if max_steps < 1:
            raise ValueError(f"max_steps is at least 1; got {max_steps}")
        self.max_steps = max_steps
        _shared_logic()
        with kept_argv():
            self._library = _textworld_pddl().fast_downward.load_lib()
        self._game: Game | None = None
        self._steps = 0
        self._done = True

    @property
    def game(self) -> Game:
        """The game being played; raises ``RuntimeError`` before the first reset."""
        if self._game is None:
            raise RuntimeError("no game is loaded yet: call reset first")
        return self._game

    def reset(self, game: Game | int, split: str = "train") -> str:
        """Starts a game and returns its first observation: the room, then the task.

        Args:
            game: a game, or the number of one in ``split``.
            split: ``train`` or ``heldout``; only read when ``game`` is a number.
        """
        if isinstance(game, int):
            game = sample_game(game, split)
        if game != self._game:
            self._load(game)
        self._rewind()
        self._steps, self._done = 0, False
        intro = self._derive("#intro#", {}).replace(_UNKNOWN_TASK, task_sentence(game))
        room, task = intro.replace(_BANNER, "").strip().split("\n\n")
        return f"{room}\n{task}"

    def step(self, action: str) -> tuple[str, float, bool, dict[str, Any]]:
        """Does one action.

        Returns:
            Observation; reward (1.0 on winning, else 0.0); whether the episode is over; and info:
            ``won``, ``valid`` (the action was possible), ``steps``, ``truncated`` (out of steps).

        Raises:
            RuntimeError: the episode is over, or none was started.
        """
        if self._done:
            raise RuntimeError("the episode is over (or none was started): call reset first")
        self._steps += 1
        operator = self._commands().get(action.strip())
        observation = NOTHING_HAPPENS if operator is None else self._apply(operator)
        won = bool(self._state.check_goal())
        truncated = not won and self._steps >= self.max_steps
        self._done = won or truncated
        info = {
            "won": won,
            "valid": operator is not None,
            "steps": self._steps,
            "truncated": truncated,
        }
        return observation, float(won), self._done, info

    def restore(self, game: Game, actions: Sequence[str]) -> str:
        """Puts a game into the state after ``actions`` by playing them; returns the last answer.

        Raises:
            RuntimeError: the game ends before the last of the actions.
        """
        observation = self.reset(game)
        for action in actions:
            observation = self.step(action)[0]
        return observation

    def admissible(self) -> list[str]:
        """Every action that would do something now, sorted."""
        return sorted(self._commands())

    def _load(self, game: Game) -> None:
        pddl = _textworld_pddl()
        with kept_argv(), translated_once():
            self._state = pddl.PddlState(self._library, problem_text(game), _shared_logic())
        self._initial_facts = list(self._state.facts)
        name_of = {identifier: name for name, identifier in entity_ids(game).items()}
        variables = {v.name: v.type for fact in self._initial_facts for v in fact.arguments}
        self._entities = {}
        for identifier, kind in variables.items():
            entity = pddl.Entity(identifier, kind)
            entity.name = name_of.get(identifier, identifier)
            entity.definite, entity.indefinite = "the", "a"
            self._entities[identifier] = entity
        self._command_of: dict[str, str] = {}
        self._game = game

    def _rewind(self) -> None:
        self._library.load_sas(self._state.sas.encode("utf-8"))
        initial = set(self._initial_facts)
        for fact in [fact for fact in self._state.facts if fact not in initial]:
            self._state.remove_fact(fact)
        self._state.add_facts(self._initial_facts)

    def _commands(self) -> dict[str, Any]:
        """Command -> the engine's action, for every action possible now."""
        return {self._command(action): action for action in self._state.all_applicable_actions()}

    def _command(self, action: Any) -> str:
        places = action.mapping
        key = " ".join([action.name, *(v.name for p, v in places.items() if p.name != "lstart")])
        if key not in self._command_of:
            template = action.command_template
            if "[" in template:  # it asks the state
                template = self._derive(template, places)
            names = {ph.name: self._entities[v.name].name for ph, v in places.items()}
            self._command_of[key] = template.format(**names)
        return self._command_of[key]

    def _apply(self, action: Any) -> str:
        self._state.apply(action)
        return self._derive(action.feedback_rule, action.mapping)

    def _derive(self, rule: str, mapping: dict[Any, Any]) -> str:
        context = {
            "state": self._state,
            "facts": list(self._state.facts),
            "variables": {ph.name: self._entities[v.name] for ph, v in mapping.items()},
            "mapping": mapping,
            "entity_infos": self._entities,
        }
        return _shared_logic().grammar.derive(rule, context)


def engine_versions() -> dict[str, str]:
    """Versions of the installed engine packages, for a record's ``meta``."""
    from importlib.metadata import version

    return {name: version(name) for name in ("alfworld", "textworld")}


class _Pddl:
    """The engine's names, imported when first needed."""

    def __init__(self) -> None:
        import fast_downward
        from textworld.envs.pddl.logic import GameLogic, PddlState
        from textworld.generator.game import EntityInfo

        class Entity(EntityInfo):
            """The grammar copies its context for every symbol; names never change."""

            def __deepcopy__(self, memo: dict[int, Any]) -> Entity:
                return self

        self.fast_downward = fast_downward
        self.GameLogic, self.PddlState, self.Entity = GameLogic, PddlState, Entity


@functools.cache
def _textworld_pddl() -> _Pddl:
    try:
        return _Pddl()
    except ImportError as error:
        raise ImportError(MISSING_EXTRA) from error


@functools.cache
def _shared_logic() -> Any:
    domain, grammar = domain_and_grammar()
    memoise_parsers()
    return _textworld_pddl().GameLogic(domain=domain, grammar=grammar)


@contextlib.contextmanager
def kept_argv() -> Iterator[None]:
    """The engine's translator overwrites ``sys.argv`` (which ``tune run`` still needs)."""
    argv = sys.argv
    try:
        yield
    finally:
        sys.argv = argv
