"""A policy plays an environment; its episodes become canonical trajectories in a JSONL file.

Run: ``tune run recipes/collect_trajectories.py --config household/collect_train``

A run that was stopped or killed goes on where it was when it is started again.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torchtune import config

from sad_components.data.tokenizers import as_offset_tokenizer
from sad_components.evaluation.collection import Collection, jobs_of, task_stream
from sad_components.evaluation.metrics import count_words
from sad_components.evaluation.policies import Policy
from sad_components.evaluation.pool import EnvironmentPool
from sad_components.evaluation.rollout import Episode, Job, rollout
from sad_components.training.config import ConfigError, build, check_keys
from sad_components.training.errors import explained

SUPPORTS_DISTRIBUTED = False

KEYS = (
    *("environment", "policy", "tasks", "seeds", "seed", "budget", "tokenizer"),
    *("keep_only_successes", "output", "resume", "overwrite"),
)
REQUIRED = ("environment", "policy", "tasks", "budget", "keep_only_successes", "output")
ENVIRONMENT_KEYS = ("name", "options", "batch_size", "workers", "timeout")


class CollectTrajectoriesRecipe:
    """Plays task after task until the budget of kept episodes or tokens is spent.

    Args:
        cfg: see ``configs/household/collect_train.yaml``, which explains every field.

    Raises:
        ConfigError: a key that nobody reads, or no budget.
    """

    #: Games per wanted episode after which the recipe gives up.
    MOST_GAMES_PER_EPISODE = 3

    def __init__(self, cfg: DictConfig) -> None:
        check_keys(cfg, KEYS, required=REQUIRED)
        check_keys(cfg.environment, ENVIRONMENT_KEYS, "environment")
        check_keys(cfg.tasks, ("seed",), "tasks")
        check_keys(cfg.budget, ("episodes", "tokens"), "budget")
        self.cfg = cfg
        self.seed: int = cfg.get("seed", 0)
        self.seeds = list(cfg.get("seeds", [0]))
        self.episodes: int | None = cfg.budget.get("episodes")
        self.tokens: int | None = cfg.budget.get("tokens")
        if not any(limit and limit > 0 for limit in (self.episodes, self.tokens)):
            raise ConfigError(
                "budget needs a positive number of episodes, of tokens or both; got "
                f"episodes={self.episodes}, tokens={self.tokens}"
            )
        self.keep_only_successes: bool = cfg.keep_only_successes
        self.output = Path(cfg.output)
        self.counts: dict[str, Counter[str]] = {}
        self.dropped: list[str] = []

    def setup(self) -> None:
        """Makes policy and environment, and reads what an earlier run has left.

        Raises:
            ValueError: an output that exists and may not be continued.
        """
        cfg = self.cfg
        self.policy: Policy = build(cfg.policy, "policy")
        tokenizer = build(cfg.get("tokenizer"), "tokenizer")
        self.tokenizer = None if tokenizer is None else as_offset_tokenizer(tokenizer)
        settings = {
            "environment": [cfg.environment.name, _plain(cfg.environment.get("options"))],
            "policy": _plain(cfg.policy),
            "seed": self.seed,
            "keep_only_successes": self.keep_only_successes,
        }
        self.collection = Collection(
            self.output, settings, cfg.get("resume", True), cfg.get("overwrite", False)
        )
        self.pool = EnvironmentPool(
            cfg.environment.name,
            _plain(cfg.environment.get("options")),
            slots=cfg.environment.get("batch_size", 1),
            workers=cfg.environment.get("workers", 0),
            timeout=cfg.environment.get("timeout", 60.0),
        )

    def collect(self) -> None:
        """Plays until the budget is spent, writing every episode at once; prints what happened."""
        started = time.perf_counter()
        before = self.collection.kept
        if before:
            print(f"{self.output} holds {before} trajectories: going on")
        if not self._is_spent():
            for episode in rollout(self.policy, self.pool, self._jobs(), self.seed):
                self._add(episode)
                if self._is_spent():
                    break
        seconds = time.perf_counter() - started
        print(self._summary())
        for reason in self.dropped:
            print(f"dropped {reason}")
        if not self._is_spent():
            kept = self.collection.kept
            print(f"the budget is not spent: tasks or patience ran out at {kept} trajectories")
        added = self.collection.kept - before
        print(f"{added} trajectories added -> {self.output} ({seconds:.0f} s)")

    def cleanup(self) -> None:
        """Stops the environments."""
        self.pool.close()

    def _jobs(self) -> Iterator[Job]:
        jobs = jobs_of(task_stream(self.pool.env, self.cfg.tasks.get("seed", 0)), self.seeds)
        if self.episodes:
            jobs = itertools.islice(jobs, self.episodes * self.MOST_GAMES_PER_EPISODE)
        return (job for job in jobs if job not in self.collection.played)

    def _is_spent(self) -> bool:
        enough = self.episodes and self.collection.kept >= self.episodes
        return bool(enough or (self.tokens and self.collection.tokens >= self.tokens))

    def _add(self, episode: Episode) -> None:
        keep = episode.failure is None and (episode.won or not self.keep_only_successes)
        self.collection.add(episode, keep, self._tokens_of(episode))
        task_type = episode.trajectory.meta.get("task_type") or "all tasks"
        for name in {task_type, "all"}:
            counter = self.counts.setdefault(name, Counter())
            counter["played"] += 1
            counter["won"] += episode.won
            counter["kept"] += keep
            counter["steps"] += episode.steps
        if not keep:
            why = f"{episode.failure}: {episode.why}" if episode.failure else "not won"
            self.dropped.append(f"{episode.trajectory.id}: {why} after {episode.steps} steps")

    def _tokens_of(self, episode: Episode) -> int:
        if episode.tokens:
            return episode.tokens
        turns = [m.text for m in episode.trajectory.messages if m.role == "assistant"]
        if self.tokenizer is None:
            return sum(map(count_words, turns))
        return sum(len(self.tokenizer.encode_text(turn)[0]) for turn in turns)

    def _summary(self) -> str:
        lines = [f"{'task type':<32}{'episodes':>9}{'won':>6}{'kept':>6}{'steps':>7}"]
        for name in sorted(self.counts, key=lambda n: (n == "all", n)):
            c = self.counts[name]
            mean = c["steps"] / c["played"]
            lines.append(f"{name:<32}{c['played']:>9}{c['won']:>6}{c['kept']:>6}{mean:>7.1f}")
        return "\n".join(lines)


def _plain(node: DictConfig | None) -> dict:
    return {} if node is None else OmegaConf.to_container(node, resolve=True)


@config.parse
def recipe_main(cfg: DictConfig) -> None:
    """Entry point: sets up, collects, cleans up."""
    with explained("collect_trajectories"):
        recipe = CollectTrajectoriesRecipe(cfg)
        recipe.setup()
        try:
            recipe.collect()
        finally:
            recipe.cleanup()


if __name__ == "__main__":
    sys.exit(recipe_main())
