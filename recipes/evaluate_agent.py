"""Policies play an environment's tasks; results.json says how well, with intervals and tests.

Run: ``tune run recipes/evaluate_agent.py --config household/evaluate_expert``
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torchtune import config

from sad_components.data.shipped import resolve_source
from sad_components.data.tokenizers import as_offset_tokenizer
from sad_components.data.transform import SpanTokenizer
from sad_components.evaluation.heldout import HeldoutEvaluator
from sad_components.evaluation.heldout_steps import heldout_steps, summarize_steps
from sad_components.evaluation.metrics import compare, count_words, summarize
from sad_components.evaluation.policies import ModelPolicy, Policy
from sad_components.evaluation.pool import EnvironmentPool
from sad_components.evaluation.results import format_results
from sad_components.evaluation.rollout import Episode, Job, rollout
from sad_components.models.hidden import (
    head_of,
    num_parameters,
    restore_logits,
    stop_at_hidden,
)
from sad_components.training.config import ConfigError, build, check_keys
from sad_components.training.errors import explained
from sad_components.training.report import versions
from sad_components.training.teachers import as_teacher
from sad_components.trajectory import read_jsonl, write_jsonl

SUPPORTS_DISTRIBUTED = False

KEYS = ("environment", "tasks", "seeds", "policies", "compare", "tokenizer", "heldout", "teacher")
KEYS += ("seed", "output_dir", "overwrite")
REQUIRED = ("environment", "tasks", "policies", "output_dir")
ENVIRONMENT_KEYS = ("name", "options", "batch_size", "workers", "timeout")


class EvaluateAgentRecipe:
    """Every policy plays the same (task, seed) pairs; each pair of policies is then compared.

    Args:
        cfg: see ``configs/household/evaluate_expert.yaml``, which explains every field.

    Raises:
        ConfigError: a key that nobody reads, or no policy.
    """

    def __init__(self, cfg: DictConfig) -> None:
        check_keys(cfg, KEYS, required=REQUIRED)
        check_keys(cfg.environment, ENVIRONMENT_KEYS, "environment")
        check_keys(cfg.tasks, ("count", "seed", "ids"), "tasks")
        if not cfg.policies:
            raise ConfigError("policies names at least one policy; got none")
        self.cfg = cfg
        self.seed: int = cfg.get("seed", 0)
        self.seeds = list(cfg.get("seeds", [0]))
        self.output_dir = Path(cfg.output_dir)
        self.episodes: dict[str, list[Episode]] = {}
        self.results: dict[str, Any] = {}

    def setup(self) -> None:
        """Makes the environment and reads the held-out trajectories.

        Raises:
            ValueError: results that exist and would be lost, or pairs of unknown policies.
        """
        target = self.output_dir / "results.json"
        if target.exists() and not self.cfg.get("overwrite", False):
            raise ConfigError(
                f"{target} exists and would be lost: choose another output_dir, or set "
                "overwrite=True"
            )
        names = list(self.cfg.policies)
        pairs = self.cfg.get("compare")
        self.pairs = list(itertools.combinations(names, 2)) if pairs is None else pairs
        for pair in self.pairs:
            if len(pair) != 2 or any(name not in names for name in pair):
                raise ConfigError(f"compare lists pairs of {', '.join(names)}; got {list(pair)}")
        tokenizer = build(self.cfg.get("tokenizer"), "tokenizer")
        self.tokenizer = None if tokenizer is None else as_offset_tokenizer(tokenizer)
        self.heldout = self._read_heldout(self.cfg.get("heldout"))
        place = self.cfg.environment
        self.pool = EnvironmentPool(
            place.name,
            OmegaConf.to_container(place.get("options") or OmegaConf.create({}), resolve=True),
            slots=place.get("batch_size", 1),
            workers=place.get("workers", 0),
            timeout=place.get("timeout", 60.0),
        )
        tasks = self.cfg.tasks
        ids = list(
            tasks.get("ids") or self.pool.env.tasks(tasks.get("count"), tasks.get("seed", 0))
        )
        self.jobs = [Job(task, seed) for seed in self.seeds for task in ids]

    def evaluate(self) -> None:
        """Plays, measures, compares, and writes ``results.json``."""
        policies = {name: self._evaluate_policy(name) for name in self.cfg.policies}
        self.results = {
            "environment": OmegaConf.to_container(self.cfg.environment, resolve=True),
            "tasks": len({job.task for job in self.jobs}),
            "seeds": self.seeds,
            "policies": policies,
            "comparisons": [
                {"a": a, "b": b, **compare(self.episodes[a], self.episodes[b])}
                for a, b in self.pairs
            ],
            "config": OmegaConf.to_container(self.cfg, resolve=True),
            "versions": versions(),
        }
        target = self.output_dir / "results.json"
        aside = target.with_suffix(".part")
        aside.write_text(json.dumps(self.results, indent=2) + "\n", encoding="utf-8")
        os.replace(aside, target)
        print(format_results(self.results))
        print(f"results -> {target}")

    def cleanup(self) -> None:
        """Stops the environments."""
        self.pool.close()

    def _evaluate_policy(self, name: str) -> dict[str, Any]:
        node = self.cfg.policies[name]
        policy: Policy = build(
            node, f"policies.{name}", **({} if "name" in node else {"name": name})
        )
        started = time.perf_counter()
        played = list(rollout(policy, self.pool, self.jobs, self.seed))
        seconds = time.perf_counter() - started
        self.episodes[name] = played
        folder = self.output_dir / name
        write_jsonl(folder / "trajectories.jsonl", (e.trajectory for e in played))
        lines = "".join(json.dumps(e.summary()) + "\n" for e in played)
        (folder / "episodes.jsonl").write_text(lines, encoding="utf-8")
        tokenizer = self.tokenizer
        if tokenizer is None and isinstance(policy, ModelPolicy):
            tokenizer = policy.transform.tokenizer
        count = count_words if tokenizer is None else lambda t: len(tokenizer.encode_text(t)[0])
        unit = "words" if tokenizer is None else "tokens"
        figures = summarize(played, seconds, count, unit)
        if _is_local(policy):
            with policy.generator.model.plain() as model:
                figures["parameters"] = num_parameters(model)
        if self.heldout and not policy.needs:
            figures["heldout"] = self._heldout_figures(policy)
        return figures

    def _heldout_figures(self, policy: Policy) -> dict[str, Any]:
        records = heldout_steps(policy, self.heldout, self.pool.slots, self.seed)
        figures = summarize_steps(records)
        if _is_local(policy):
            figures |= self._teacher_forced(policy)
        return figures

    @torch.no_grad()
    def _teacher_forced(self, policy: ModelPolicy) -> dict[str, Any]:
        """Action match and CE, and KL where a teacher is named."""
        transform: SpanTokenizer = policy.transform
        rows = [row for trajectory in self.heldout for row in transform.rows(trajectory)]
        evaluator = HeldoutEvaluator(rows, transform.tokenizer.pad_id, transform.tokenizer.decode)
        vocabulary = transform.tokenizer.vocab_size
        teacher = as_teacher(build(self.cfg.get("teacher"), "teacher"))
        with policy.generator.model.plain() as model:
            head = head_of(model, vocabulary)
            if teacher is not None:
                teacher.cut_vocab(vocabulary)
                evaluator.score_teacher(teacher.rows, head.weight_VD.device)
            scores = evaluator.score(stop_at_hidden(model), head)
            restore_logits(model)
        return scores.to_dict()

    def _read_heldout(self, node: DictConfig | None) -> list[Any]:
        if node is None:
            return []
        check_keys(node, ("source", "limit"), "heldout")
        return list(itertools.islice(read_jsonl(resolve_source(node.source)), node.get("limit")))


def _is_local(policy: Policy) -> bool:
    """Whether a torchtune model on this machine plays."""
    model = getattr(policy.generator, "model", None) if isinstance(policy, ModelPolicy) else None
    return hasattr(model, "plain")


@config.parse
def recipe_main(cfg: DictConfig) -> None:
    """Entry point: sets up, evaluates, cleans up."""
    with explained("evaluate_agent"):
        recipe = EvaluateAgentRecipe(cfg)
        recipe.setup()
        try:
            recipe.evaluate()
        finally:
            recipe.cleanup()


if __name__ == "__main__":
    sys.exit(recipe_main())
