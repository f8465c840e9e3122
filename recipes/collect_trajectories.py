"""The household expert plays games; its episodes become canonical trajectories in a JSONL file.

Run: ``tune run collect_trajectories --config household/collect_train``
"""

from __future__ import annotations

import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig
from torchtune import config

from sad_components.envs.household import TASK_TYPES
from sad_components.envs.household.collection import EpisodeSettings, play_episodes
from sad_components.training.config import check_keys
from sad_components.trajectory import Trajectory, write_jsonl

KEYS = (
    *("env", "split", "seed", "episodes", "task_types", "style", "wrong_turn_share"),
    *("keep_only_successes", "workers", "output", "overwrite"),
)


class CollectTrajectoriesRecipe:
    """Plays games in the order of their seeds until every task type has its share of episodes.

    Args:
        cfg: see ``configs/household/collect_train.yaml``, which explains every field.

    Raises:
        ConfigError: a key that nobody reads.
    """

    #: Games per wanted episode after which the recipe gives up on a task type.
    MOST_GAMES_PER_EPISODE = 3

    def __init__(self, cfg: DictConfig) -> None:
        check_keys(cfg, KEYS)
        check_keys(cfg.env, ["max_steps"], "env")
        self.settings = EpisodeSettings(
            split=cfg.split,
            style=cfg.style,
            wrong_turn_share=cfg.wrong_turn_share,
            max_steps=cfg.env.max_steps,
        )
        self.seed: int = cfg.seed
        self.episodes: int = cfg.episodes
        self.task_types: list[str] = list(cfg.task_types)
        self.keep_only_successes: bool = cfg.keep_only_successes
        self.workers: int = cfg.workers
        self.output = Path(cfg.output)
        self.overwrite: bool = cfg.overwrite
        self.won: Counter[str] = Counter()
        self.played: Counter[str] = Counter()
        self.steps: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.dropped: list[str] = []

    def setup(self) -> None:
        """Checks what can be checked before the first game.

        Raises:
            ValueError: task types or episodes that cannot be, or an output that exists.
        """
        unknown = [name for name in self.task_types if name not in TASK_TYPES]
        if unknown or not self.task_types:
            raise ValueError(
                f"task_types is a non-empty list of {', '.join(TASK_TYPES)}; got {self.task_types}"
            )
        if self.episodes < 1 or self.episodes % len(self.task_types):
            raise ValueError(
                "episodes is a positive multiple of the number of task types, so that each gets "
                f"the same share; got {self.episodes} for {len(self.task_types)} types"
            )
        if self.output.exists() and not self.overwrite:
            raise ValueError(
                f"{self.output} exists and would be lost: choose another output, or set "
                "overwrite=True"
            )

    def collect(self) -> None:
        """Plays, writes the file when all is played, and prints what happened."""
        started = time.perf_counter()
        count = write_jsonl(self.output, self._kept_trajectories())
        seconds = time.perf_counter() - started
        print(self._summary())
        print(f"{count} trajectories -> {self.output} ({seconds:.0f} s)")

    def cleanup(self) -> None:
        """Says what was dropped."""
        for reason in self.dropped:
            print(f"dropped {reason}")

    def _kept_trajectories(self) -> Iterator[Trajectory]:
        quota = self.episodes // len(self.task_types)
        seeds = {name: self._seeds_of(name) for name in self.task_types}
        for _ in range(self.MOST_GAMES_PER_EPISODE):
            missing = {name: quota - self.kept[name] for name in self.task_types}
            batch = sorted(
                seed for name in missing for seed in itertools.islice(seeds[name], missing[name])
            )
            for trajectory in play_episodes(batch, self.settings, self.workers):
                if self._count(trajectory):
                    yield trajectory
        short = {name: self.kept[name] for name in self.task_types if self.kept[name] < quota}
        if short:
            self.dropped.append(f"the rest: too many games were lost; kept {short} of {quota} each")

    def _seeds_of(self, task_type: str) -> Iterator[int]:
        offset = (TASK_TYPES.index(task_type) - self.seed) % len(TASK_TYPES)
        return itertools.count(self.seed + offset, len(TASK_TYPES))

    def _count(self, trajectory: Trajectory) -> bool:
        task_type = trajectory.meta["task_type"]
        self.played[task_type] += 1
        self.won[task_type] += bool(trajectory.success)
        self.steps[task_type] += sum(m.role == "assistant" for m in trajectory.messages)
        keep = bool(trajectory.success) or not self.keep_only_successes
        self.kept[task_type] += keep
        if not keep:
            self.dropped.append(f"{trajectory.id}: not won in {self.settings.max_steps} steps")
        return keep

    def _summary(self) -> str:
        lines = [f"{'task type':<32}{'episodes':>9}{'won':>6}{'kept':>6}{'steps':>7}"]
        for name in (*self.task_types, "all"):
            played, won, kept, steps = (
                counter.total() if name == "all" else counter[name]
                for counter in (self.played, self.won, self.kept, self.steps)
            )
            mean = steps / played if played else 0.0
            lines.append(f"{name:<32}{played:>9}{won:>6}{kept:>6}{mean:>7.1f}")
        return "\n".join(lines)


@config.parse
def recipe_main(cfg: DictConfig) -> None:
    """Entry point: sets up, collects, cleans up."""
    recipe = CollectTrajectoriesRecipe(cfg)
    recipe.setup()
    recipe.collect()
    recipe.cleanup()


if __name__ == "__main__":
    sys.exit(recipe_main())
