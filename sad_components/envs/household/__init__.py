"""Household games in ALFWorld's domain: games by number, an expert, its trajectories.

Sampling games and reading the shipped trajectories need nothing but the package; playing needs
the ``household`` extra (``pip install 'torchtune-sad[household]'``), asked for only when a
``HouseholdEnv`` is made.
"""

from importlib.resources import files
from pathlib import Path

from sad_components.envs.household.engine import NOTHING_HAPPENS, HouseholdEnv
from sad_components.envs.household.episodes import play_episode
from sad_components.envs.household.expert import Decision, Expert
from sad_components.envs.household.games import (
    SPLITS,
    Game,
    Layout,
    layout_fingerprint,
    sample_game,
    split_of,
)
from sad_components.envs.household.world import TASK_TYPES

__all__ = [
    "Decision",
    "Expert",
    "Game",
    "HouseholdEnv",
    "Layout",
    "NOTHING_HAPPENS",
    "SPLITS",
    "TASK_TYPES",
    "layout_fingerprint",
    "play_episode",
    "sample_game",
    "shipped",
    "split_of",
]


def shipped(split: str) -> Path:
    """The JSONL file of expert trajectories that the package carries for a split.

    Args:
        split: ``train`` (300 episodes) or ``heldout`` (60, with acceptable actions).

    Raises:
        ValueError: no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"a split is one of {', '.join(SPLITS)}; got {split!r}")
    return Path(str(files(__package__))) / "trajectories" / f"{split}.jsonl"
