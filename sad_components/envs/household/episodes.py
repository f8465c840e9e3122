"""One expert episode as a canonical trajectory."""

from __future__ import annotations

import random
from typing import Any

from sad_components.envs.household.beliefs import Beliefs
from sad_components.envs.household.checking import CheckingNarrator, narrator_of
from sad_components.envs.household.engine import NOTHING_HAPPENS, HouseholdEnv, engine_versions
from sad_components.envs.household.expert import Decision, Expert
from sad_components.envs.household.games import Game, layout_fingerprint
from sad_components.envs.household.thoughts import SEEING
from sad_components.envs.household.world import kind_of
from sad_components.envs.household.wrong_turns import (
    false_claim,
    overlooking,
    schedule,
    wrong_action,
)
from sad_components.trajectory import Message, Trajectory

TEACHER = "household-expert"

#: Of the episodes with wrong turns, those in which what is sought is overlooked when it is in
#: sight; of these, those in which it is also forgotten; of the wrong turns of a search, those in
#: which the thought claims to see what is not there.
_OVERLOOKED_SHARE, _FORGOTTEN_SHARE, _CLAIMED_SHARE = 0.15, 0.5, 0.6

_ACTIONS = (
    "Actions: go to R, open R, close R, take O from R, move O to R, use O, "
    "clean O with R, heat O with R, cool O with R."
)
INSTRUCTIONS = {
    "dense": f"Solve a household task. Reply with one thought and one action.\n{_ACTIONS}",
    # short: for models that learn it from transcripts alone
    "checking": "Solve a household task. Reply with one thought and one action.",
    "sparse": f"Solve a household task. Reply with one action; think when it helps.\n{_ACTIONS}",
}


def play_episode(
    env: HouseholdEnv, game: Game, style: str = "dense", wrong_turn_share: float = 0.25
) -> Trajectory:
    """The expert's transcript of a game, won or not; the same for the same arguments.

    Wrong turns have ``weight: 0``. In the ``heldout`` split every other agent turn carries the
    ``acceptable`` actions.

    Args:
        env: engine to play in; its step limit holds.
        game: which game.
        style: ``dense``, ``checking`` or ``sparse`` thoughts.
        wrong_turn_share: probability in [0, 1] that the episode holds a wrong turn or two.

    Raises:
        ValueError: no such style, or a share outside [0, 1].
    """
    _check_share(wrong_turn_share)
    observation = env.reset(game)
    player = ExpertPlayer(env, observation, style, wrong_turn_share)
    messages = [Message("user", f"{INSTRUCTIONS[style]}\n\n{observation}")]
    for _ in range(env.max_steps):
        message, action = player.turn()
        observation, reward, done, info = env.step(action)
        player.observe(observation)
        messages += [message, Message("user", observation)]
        if done:
            break
    return Trajectory(
        messages=messages,
        id=f"household-{game.id}-{style}",
        env="household",
        task=player.sentence,
        success=info["won"],
        score=reward,
        teacher=TEACHER,
        format="react",
        meta=describe_game(game, style),
    )


class ExpertPlayer:
    """The expert with its words and, on purpose, its wrong turns: one episode of its own.

    Args:
        env: where the game has just been reset; asked for what is admissible.
        first_observation: what the reset said.
        style: ``dense``, ``checking`` or ``sparse`` thoughts.
        wrong_turn_share: probability in [0, 1] that the episode holds a wrong turn or two.
        search: ``likely`` or ``listed``, see :class:`Expert`.

    Raises:
        ValueError: no such style or search, or a share outside [0, 1].
    """

    def __init__(
        self,
        env: HouseholdEnv,
        first_observation: str,
        style: str,
        wrong_turn_share: float,
        search: str = "likely",
    ) -> None:
        _check_share(wrong_turn_share)
        self._env = env
        self._rng = random.Random(f"{env.game.id}:{style}")
        self._narrator = narrator_of(style, self._rng)
        self._checks = style == CheckingNarrator.style
        self._wrong_turns = schedule(wrong_turn_share, self._rng)
        self._overlooks = bool(self._wrong_turns)
        self._expert = Expert(first_observation, self._rng, search=search)
        self._turns = 0
        self._slip: str | None = None
        self._own: frozenset[str] = frozenset()

    @property
    def sentence(self) -> str:
        """The task in words."""
        return self._expert.beliefs.sentence

    def turn(self) -> tuple[Message, str]:
        """The next turn as a message, and its action."""
        decision, beliefs = self._expert.decide(), self._expert.beliefs
        goes_wrong = self._turns in self._wrong_turns
        misread = self._misread(decision, goes_wrong) if self._checks else None
        said, known, slip = misread or (decision, beliefs, None)
        thought = self._narrator.thought(said, known, self._slip)
        action, self._slip = said.action, slip
        if goes_wrong and misread is None:
            action, self._slip = wrong_action(
                decision, beliefs, self._env.admissible(), self._rng, standing=self._checks
            )
        message = Message("assistant", render_turn(thought, action))
        if misread or self._slip:
            message.weight = 0
        elif self._env.game.split == "heldout":
            message.acceptable = list(decision.acceptable)
        self._turns += 1
        self._own = frozenset((action, *decision.acceptable))
        return message, action

    def _misread(
        self, decision: Decision, goes_wrong: bool
    ) -> tuple[Decision, Beliefs, str | None] | None:
        """A look at what is here that goes wrong: what is then thought, known, and the slip."""
        beliefs, rng = self._expert.beliefs, self._rng
        if decision.situation in SEEING:
            if self._overlooks and rng.random() < _OVERLOOKED_SHARE:
                self._overlooks = False
                sought = kind_of(decision.action.split()[1])  # "take mug 2 ..", "use desklamp 1"
                blind = overlooking(beliefs, sought)
                if rng.random() < _FORGOTTEN_SHARE:
                    self._expert.beliefs = blind  # else it comes back for what it has seen
                return self._expert.decide(blind), blind, None
        elif goes_wrong and rng.random() < _CLAIMED_SHARE:
            claim = false_claim(decision, beliefs, rng)
            return claim and (claim, beliefs, "invalid")
        return None

    def observe(self, observation: str, action: str | None = None) -> None:
        """Takes in the answer to an action.

        Args:
            observation: the answer.
            action: what was done, where that may be another's idea (the next thought then speaks
                of it if it did nothing or led back); None: the last turn's action.
        """
        if action is not None and action not in self._own:
            self._slip = self._slip_of(action, observation)
            self._narrator.interrupt()
        self._expert.observe(observation)

    def _slip_of(self, action: str, observation: str) -> str | None:
        if observation == NOTHING_HAPPENS:
            return "invalid"
        seen_before = action.removeprefix("go to ") in self._expert.beliefs.contents
        return "detour" if seen_before else None


def describe_game(game: Game, style: str) -> dict[str, Any]:
    """What a record's ``meta`` says of its game."""
    return {
        "task_type": game.task_type,
        "split": game.split,
        "seed": game.seed,
        "style": style,
        "layout": layout_fingerprint(game.layout),
        "engine": engine_versions(),
    }


def _check_share(wrong_turn_share: float) -> None:
    if not 0 <= wrong_turn_share <= 1:
        raise ValueError(f"wrong_turn_share is a probability in [0, 1]; got {wrong_turn_share}")


def render_turn(thought: str | None, action: str) -> str:
    """An agent turn in the ``react`` format; without a thought only the action line."""
    line = f"Action: {action}"
    return f"Thought: {thought}\n{line}" if thought else line
