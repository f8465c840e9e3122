"""Environments an agent plays in, behind one protocol; their engines are optional extras."""

from sad_components.envs.protocol import (
    Environment,
    EpisodeOver,
    NoSuchTask,
    Outcome,
    StepResult,
)
from sad_components.envs.registry import ENVIRONMENTS, make_environment

__all__ = [
    "ENVIRONMENTS",
    "Environment",
    "EpisodeOver",
    "NoSuchTask",
    "Outcome",
    "StepResult",
    "make_environment",
]
