"""Episodes per second: many at once against one at a time, both with a cache of keys and values.

Run: python benchmarks/bench_rollout.py [--env scripted|household] [--json FILE]

A random model plays greedily in fp32; its actions are compared too. ``scripted`` is an environment
without an engine that answers at once.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from sad_components.data.tokenizers import HFTokenizer
from sad_components.envs import Environment, Outcome
from sad_components.evaluation.policies import model_policy
from sad_components.evaluation.pool import EnvironmentPool
from sad_components.evaluation.rollout import Episode, Job, rollout
from sad_components.models import from_scratch
from sad_components.training.report import versions


class CountingRoom(Environment):
    """Numbered rooms; the answer to an action depends on the task, the step and the action."""

    name = "counting-room"
    instructions = "Reply with one action."

    def tasks(self, count: int | None = None, seed: int = 0) -> list[str]:
        return [str(n) for n in range(seed, seed + (count or 1))]

    def _start(self, task: str) -> str:
        self._task, self._count = int(task), 0
        return f"You are in room {task}. You see a door {self._task % 7} and a lamp."

    def _act(self, action: str) -> Outcome:
        self._count += 1
        at = (self._task * 31 + self._count * 7 + len(action)) % 50
        return Outcome(f"You are in room {at}. You see " + "a mug 1, " * (at % 5) + "a door.")


def play(args: argparse.Namespace, batch_size: int) -> tuple[list[Episode], float]:
    """Episodes and wall-clock seconds with ``batch_size`` of them at once."""
    tokenizer = HFTokenizer("shipped:household/tokenizer")
    config = {
        "model_type": "llama",
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": args.dim,
        "intermediate_size": 4 * args.dim,
        "num_hidden_layers": args.layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1.0e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
    policy = model_policy(
        from_scratch(config, seed=0),
        tokenizer,
        {"style": "plain"},
        max_new_tokens=args.tokens,
    )
    # run as a script, this folder is the first place where modules are looked for
    name = "bench_rollout.CountingRoom" if args.env == "scripted" else args.env
    with EnvironmentPool(name, {"max_steps": args.steps}, slots=batch_size) as pool:
        jobs = [Job(task) for task in pool.env.tasks(args.episodes)]
        started = time.perf_counter()
        episodes = list(rollout(policy, pool, jobs))
        return episodes, time.perf_counter() - started


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--env", default="scripted", choices=["scripted", "household"])
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="steps an episode at most")
    parser.add_argument("--tokens", type=int, default=24, help="tokens a turn at most")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = {}
    for batch_size in (1, args.batch_size):
        runs = [play(args, batch_size) for _ in range(args.repeats)]
        seconds = sorted(run[1] for run in runs)
        rows[batch_size] = {
            "batch_size": batch_size,
            "episodes_per_s_median": args.episodes / seconds[len(seconds) // 2],
            "episodes_per_s_worst": args.episodes / seconds[-1],
            "tokens": sum(e.tokens for e in runs[0][0]),
            "said": [[m.text for m in e.trajectory.messages] for e in runs[0][0]],
        }
    single, batched = rows[1], rows[args.batch_size]
    same = single.pop("said") == batched.pop("said")
    report = {
        "settings": {k: v for k, v in vars(args).items() if k != "json"},
        "single": single,
        "batched": batched,
        "speedup": batched["episodes_per_s_median"] / single["episodes_per_s_median"],
        "same_transcripts": same,
        "versions": versions(),
    }
    print(json.dumps(report, indent=2))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
