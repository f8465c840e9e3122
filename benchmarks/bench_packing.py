"""Packing against padding: the recipe's tokens/s on the shipped trajectories, and equal losses.

Every layout trains the same models on the same rows, step by step in turns, in one process; a
token is one that is no padding. Random models: layouts differ in shapes, not in values.

    python benchmarks/bench_packing.py --json
    python benchmarks/bench_packing.py --device cuda --dtype bf16 --width 960 --layers 32 --rows 16
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from typing import Any

import torch
from bench_recipe import load
from omegaconf import OmegaConf
from turns import ROOT, hardware

from sad_components.training.report import versions


def layouts(rows: int, positions: int) -> dict[str, list[str]]:
    """Overrides by name; all read ``rows`` rows a step."""
    budget = f"max_tokens_per_batch={positions}"
    return {
        "padded": ["batch_size=4", f"gradient_accumulation_steps={rows // 4}"],
        "padded, token budget": [f"batch_size={rows}", budget],
        "packed, token budget": [f"batch_size={rows}", budget, "packing=true"],
        "packed, longest row": [f"batch_size={rows}", "packing=true"],
    }


def recipe_of(name: str, args: argparse.Namespace, folder: str) -> Any:
    """The recipe with one layout, ready to train."""
    given = [f"device={args.device}", f"dtype={args.dtype}", f"output_dir={folder}/{name}"]
    given += ["heldout=null", "metric_logger=null", "lr_scheduler=null"]
    given += [f"dataset.limit={args.rows * args.steps}"]
    given += ["loss._component_=sad_components.loss.FusedStructuredKDLoss"]
    for model, depth in (("student", args.layers), ("teacher", 2 * args.layers)):
        sizes = {"hidden_size": args.width, "intermediate_size": 3 * args.width}
        heads = max(1, args.width // 64)
        sizes |= {"num_attention_heads": heads, "num_key_value_heads": heads}
        sizes |= {"num_hidden_layers": depth, "vocab_size": args.vocab}
        given += [f"{model}.config.{key}={value}" for key, value in sizes.items()]
        given += [f"{model}.std=null"]
    tiny = OmegaConf.load(ROOT / "configs" / "tiny" / "structured_kd.yaml")
    own = layouts(args.rows, args.positions)[name]
    cfg = OmegaConf.merge(tiny, OmegaConf.from_dotlist([*given, *own]))
    recipe = load(ROOT / "recipes" / "structured_kd.py").StructuredKDRecipe(cfg)
    recipe.setup(cfg)
    return recipe


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per layout: tokens/s by the median step, and how far its losses are from padding's."""
    with tempfile.TemporaryDirectory() as folder:
        recipes = {name: recipe_of(name, args, folder) for name in layouts(args.rows, 1)}
        seconds: dict[str, list[float]] = {name: [] for name in recipes}
        losses: dict[str, list[float]] = {name: [] for name in recipes}
        tokens = []
        for step in range(args.steps * args.repeats):
            for name, recipe in recipes.items():
                recipe.step = step
                if args.device == "cuda":
                    torch.cuda.synchronize()
                begun = time.perf_counter()
                losses[name].append(recipe.train_step()["loss"])
                seconds[name].append(time.perf_counter() - begun)
            batches = recipes["padded"]._micro_rows(step)
            tokens.append(sum(len(row) for batch in batches for seq in batch for row in seq))
        facts = {name: _shape(recipe) for name, recipe in recipes.items()}
        for recipe in recipes.values():
            recipe.cleanup()
    first = args.steps if args.repeats > 1 else 1  # an epoch, or a step, in which kernels load
    rate = {
        name: statistics.median(n / s for n, s in zip(tokens[first:], taken[first:]))
        for name, taken in seconds.items()
    }
    return [
        {
            "layout": name,
            "tokens_per_s": rate[name],
            "times_padded": statistics.median(
                a / b for a, b in zip(seconds["padded"][first:], seconds[name][first:])
            ),
            "largest_loss_difference": max(
                abs(a / b - 1) for a, b in zip(losses[name], losses["padded"])
            ),
            **facts[name],
        }
        for name in recipes
    ]


def _shape(recipe: Any) -> dict[str, float]:
    """Positions of the first epoch: how many, how many at a time, and the share of padding."""
    used, sizes = 0, []
    for step in range(recipe.order.steps_per_epoch):
        for batch in recipe._micro_rows(step):
            lengths = [sum(len(row) for row in sequence) for sequence in batch]
            used += sum(lengths)
            sizes.append(len(batch) * max(lengths))
    return {"batches": len(sizes), "largest": max(sizes), "padding": 1 - used / sum(sizes)}


def main() -> None:
    """Prints a line a layout."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6, help="the teacher has twice as many")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=8, help="of a step, a multiple of 4")
    parser.add_argument("--positions", type=int, default=2048, help="token budget")
    parser.add_argument("--steps", type=int, default=6, help="of an epoch")
    parser.add_argument("--repeats", type=int, default=2, help="epochs; the first is a warm-up")
    args = parser.parse_args()
    described = {**hardware(), "settings": vars(args), "versions": versions()}
    for row in measure(args):
        if args.json:
            print(json.dumps({**row, **described}), flush=True)
            continue
        print(
            f"{row['layout']:<21} {row['tokens_per_s']:8,.0f} tokens/s, {row['times_padded']:.2f} "
            f"times padded; {row['padding']:.1%} padding, loss within "
            f"{row['largest_loss_difference']:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
