"""Many expert episodes, in one process or several, in an order that does not depend on it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sad_components.envs.household.engine import HouseholdEnv
from sad_components.envs.household.episodes import play_episode
from sad_components.envs.household.games import sample_game
from sad_components.trajectory import Trajectory


@dataclass(frozen=True)
class EpisodeSettings:
    """How episodes are played.

    Args:
        split: ``train`` or ``heldout``.
        style: ``dense`` or ``sparse`` thoughts.
        wrong_turn_share: probability in [0, 1] of an episode with a wrong turn or two.
        max_steps: actions after which an episode ends unwon.
    """

    split: str = "train"
    style: str = "dense"
    wrong_turn_share: float = 0.25
    max_steps: int = 50


def play_episodes(
    seeds: Sequence[int], settings: EpisodeSettings, workers: int = 1
) -> Iterator[Trajectory]:
    """The expert's trajectories of the games ``seeds``, in this order.

    Args:
        seeds: numbers of games in ``settings.split``.
        settings: how they are played.
        workers: processes; 1 plays in this one.

    Raises:
        ValueError: ``workers`` below 1.
    """
    if workers < 1:
        raise ValueError(f"workers is the number of processes, at least 1; got {workers}")
    if workers == 1:
        player = _Player(settings)
        yield from map(player.play, seeds)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=_start_worker, initargs=(settings,)) as pool:
        yield from pool.imap(_play_in_worker, seeds, chunksize=4)


class _Player:
    def __init__(self, settings: EpisodeSettings) -> None:
        self._settings = settings
        self._env = HouseholdEnv(settings.max_steps)

    def play(self, seed: int) -> Trajectory:
        settings = self._settings
        game = sample_game(seed, settings.split)
        return play_episode(self._env, game, settings.style, settings.wrong_turn_share)


_player_of_worker: _Player | None = None


def _start_worker(settings: EpisodeSettings) -> None:
    global _player_of_worker
    _player_of_worker = _Player(settings)


def _play_in_worker(seed: int) -> Trajectory:
    assert _player_of_worker is not None, "the pool's initializer makes the player"
    return _player_of_worker.play(seed)
