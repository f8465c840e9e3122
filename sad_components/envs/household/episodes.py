"""One expert episode as a canonical trajectory."""

from __future__ import annotations

import random

from sad_components.envs.household.engine import HouseholdEnv, engine_versions
from sad_components.envs.household.expert import Expert
from sad_components.envs.household.games import Game, layout_fingerprint
from sad_components.envs.household.thoughts import Narrator
from sad_components.envs.household.wrong_turns import schedule, wrong_action
from sad_components.trajectory import Message, Trajectory

TEACHER = "household-expert"

_ACTIONS = (
    "Actions: go to R, open R, close R, take O from R, move O to R, use O, "
    "clean O with R, heat O with R, cool O with R."
)
INSTRUCTIONS = {
    "dense": f"Solve a household task. Reply with one thought and one action.\n{_ACTIONS}",
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
        style: ``dense`` or ``sparse`` thoughts.
        wrong_turn_share: probability in [0, 1] that the episode holds a wrong turn or two.

    Raises:
        ValueError: no such style, or a share outside [0, 1].
    """
    if not 0 <= wrong_turn_share <= 1:
        raise ValueError(f"wrong_turn_share is a probability in [0, 1]; got {wrong_turn_share}")
    rng = random.Random(f"{game.id}:{style}")
    narrator = Narrator(style, rng)
    wrong_turns = schedule(wrong_turn_share, rng)
    first = env.reset(game)
    expert = Expert(first, rng)
    messages = [Message("user", f"{INSTRUCTIONS[style]}\n\n{first}")]
    slip = None
    for turn in range(env.max_steps):
        decision = expert.decide()
        thought = narrator.thought(decision, expert.beliefs, slip)
        action, slip = decision.action, None
        if turn in wrong_turns:
            action, slip = wrong_action(decision, expert.beliefs, env.admissible(), rng)
        message = Message("assistant", render_turn(thought, action))
        if slip:
            message.weight = 0
        elif game.split == "heldout":
            message.acceptable = list(decision.acceptable)
        observation, reward, done, info = env.step(action)
        expert.observe(observation)
        messages += [message, Message("user", observation)]
        if done:
            break
    return Trajectory(
        messages=messages,
        id=f"household-{game.id}-{style}",
        env="household",
        task=expert.beliefs.sentence,
        success=info["won"],
        score=reward,
        teacher=TEACHER,
        format="react",
        meta={
            "task_type": game.task_type,
            "split": game.split,
            "seed": game.seed,
            "style": style,
            "layout": layout_fingerprint(game.layout),
            "engine": engine_versions(),
        },
    )


def render_turn(thought: str | None, action: str) -> str:
    """An agent turn in the ``react`` format; without a thought only the action line."""
    line = f"Action: {action}"
    return f"Thought: {thought}\n{line}" if thought else line
