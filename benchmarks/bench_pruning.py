"""How far students are from their teacher before any training, by the way layers were chosen.

Run: python benchmarks/bench_pruning.py demo/SmolLM2-135M-Instruct [--layers 20 15] [--ways ..]

Prints KL(teacher || student) on held-out trajectories (nats/token), a row for each way and depth,
and appends it as JSON to a file on request. Layers are chosen on other trajectories, in fp32.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torchtune.modules import TransformerDecoder

from sad_components.data import HFTokenizer, SpanTokenizer, TrajectoryDataset
from sad_components.evaluation.heldout import HeldoutEvaluator
from sad_components.models import from_pretrained
from sad_components.models.hidden import head_of, num_parameters
from sad_components.pruning.data import random_rows
from sad_components.pruning.depth import (
    BY_DATA,
    BY_PLACE,
    layers_by_influence,
    layers_by_influence_again,
    layers_by_kl,
    layers_by_place,
)
from sad_components.pruning.importance import Rows, measure
from sad_components.pruning.parts import only_layers
from sad_components.training.report import versions
from sad_components.training.teachers import LiveTeacher


def chosen_layers(
    way: str, model: TransformerDecoder, rows: Rows, numbers: Sequence[int]
) -> dict[int, list[int]]:
    """Layers to keep for each of ``numbers``; ways on data drop one after another."""
    depth = len(model.layers)
    if way in BY_PLACE:
        return {n: layers_by_place(way, depth, n).layers for n in numbers}
    if way == "influence":
        order = layers_by_influence(measure(model, rows).influence.tolist(), min(numbers)).dropped
    else:
        drop = layers_by_kl if way == "kl" else layers_by_influence_again
        order = drop(model, rows, min(numbers)).dropped
    gone = [layer for layer, _ in order]
    return {n: [i for i in range(depth) if i not in gone[: depth - n]] for n in numbers}


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    settings = {"style": args.style, "max_seq_len": args.max_seq_len}
    rows = random_rows(args.teacher, args.data, args.rows, seed=args.seed, **settings)
    tokenizer = HFTokenizer(str(args.teacher))
    heldout = TrajectoryDataset(
        args.heldout, SpanTokenizer(tokenizer, **settings), limit=args.heldout_rows
    )
    model = from_pretrained(args.teacher, dtype="fp32").eval()
    evaluator = HeldoutEvaluator(heldout.rows, tokenizer.pad_id, tokenizer.decode, batch_size=2)
    evaluator.score_teacher(LiveTeacher(model).rows, torch.device("cpu"))
    for way in args.ways:
        start = time.perf_counter()
        chosen = chosen_layers(way, model, rows, args.layers)
        seconds = time.perf_counter() - start
        for number, layers in chosen.items():
            with only_layers(model, layers):
                scores = evaluator.score(model, head_of(model)).to_dict()
                parameters = num_parameters(model)
            row = {"way": way, "layers": number, "parameters": parameters, "kept": layers}
            row |= {name: scores[name] for name in ("kl_reason", "kl_act", "top1_agreement")}
            print(" ".join(f"{k}={_short(v)}" for k, v in row.items()), flush=True)
            if args.json is not None:
                _append(args, {**row, "seconds_to_choose": seconds})
    return 0


def _short(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value).replace(" ", "")


def _append(args: argparse.Namespace, row: dict[str, Any]) -> None:
    command = {k: str(v) for k, v in vars(args).items() if k not in ("json", "ways", "teacher")}
    command["teacher"] = args.teacher.name
    with open(args.json, "a", encoding="utf-8") as file:
        file.write(json.dumps({**row, "command": command, "versions": versions()}) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=[20, 15])
    parser.add_argument(
        "--ways", nargs="+", choices=[*BY_PLACE, *BY_DATA], default=["even", "influence"]
    )
    parser.add_argument("--data", default="shipped:household/train")
    parser.add_argument("--rows", type=int, default=16, help="that layers are chosen on")
    parser.add_argument("--heldout", default="shipped:household/heldout")
    parser.add_argument("--heldout-rows", type=int, default=16)
    parser.add_argument("--style", choices=["chat", "plain"], default="chat")
    parser.add_argument("--max-seq-len", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
