"""Whole training steps: torchtune's KD recipe, ours with a live teacher, ours with a cache.

Same models, rows, dtype and optimizer, nothing compiled. Every method runs in a process of its
own, and the processes take turns step by step. Beside each stands its bound: the time of the
matrix products of docs/method.md section 8 alone, measured in the same turns.

    sad fetch-demo
    python benchmarks/bench_recipe.py --json
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torchtune
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torchtune import training
from torchtune.data import padded_collate_sft
from torchtune.modules.loss import CEWithChunkedOutputLoss, ForwardKLWithChunkedOutputLoss
from turns import ROOT, Worker, hardware, serve

from sad_components.data import collate_packed
from sad_components.models.hidden import head_of, restore_logits
from sad_components.models.last_layer import saves_at
from sad_components.training.report import versions

METHODS = ("torchtune", "live", "cached")
DEMO = "demo/SmolLM2-135M-Instruct"
SETS = {
    "smollm2": ("135M_to_15layers_structured_kd", "135M_cache_teacher"),
    "tiny": ("structured_kd", "cache_teacher"),
}

#: Width in, width out, and whether gradients are computed too.
Product = tuple[int, int, bool]


class Ours:
    """StructuredKDRecipe's own steps."""

    def __init__(self, cfg: DictConfig) -> None:
        self.recipe = load(ROOT / "recipes" / "structured_kd.py").StructuredKDRecipe(cfg)
        self.recipe.setup(cfg)

    def step(self, index: int) -> float:
        """Trains on the rows of step ``index``; the loss."""
        self.recipe.step = index
        return self.recipe.train_step()["loss"]


class Torchtune(Ours):
    """The step of torchtune's knowledge_distillation_single_device on the same models and rows.

    Its recipe takes LoRA students and no CPU, so its ``_loss_step`` runs on an instance that is
    set up by hand; what its loop does around that is repeated here. kd_ratio is 1: KD alone.
    """

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg)
        file = Path(torchtune.__file__).parents[1] / "recipes"
        module = load(file / "knowledge_distillation_single_device.py")
        theirs = object.__new__(module.KDRecipeSingleDevice)
        theirs._model = restore_logits(self.recipe.student)
        theirs._teacher_model = restore_logits(self.recipe.teacher.model)
        theirs._loss_fn = CEWithChunkedOutputLoss()
        theirs._kd_loss_fn = ForwardKLWithChunkedOutputLoss()
        theirs._kd_ratio = 1.0
        for model in (theirs._model, theirs._teacher_model):
            model.set_num_output_chunks(theirs._loss_fn.num_output_chunks)
        ignored = theirs._loss_fn.ignore_index
        device = self.recipe.device
        theirs.ignore_labels_cache = torch.full((cfg.batch_size, 1), ignored, device=device)
        self.theirs = theirs

    def step(self, index: int) -> float:
        theirs, recipe = self.theirs, self.recipe
        num_tokens, running = torch.zeros(()), torch.zeros(())
        for sequences in recipe._micro_rows(index):
            samples = [row.to_sample() for rows in sequences for row in rows]
            batch = padded_collate_sft(samples, padding_idx=recipe.tokenizer.pad_id)
            batch = {key: value.to(recipe.device) for key, value in batch.items()}
            current = (batch["labels"] != theirs._loss_fn.ignore_index).sum()
            num_tokens = num_tokens + current
            class_loss, kd_loss = theirs._loss_step(batch)
            running = running + kd_loss.detach() * current
            loss = (1 - theirs._kd_ratio) * class_loss + theirs._kd_ratio * kd_loss
            loss.backward()
        training.scale_grads(theirs._model, 1 / num_tokens)
        torch.nn.utils.clip_grad_norm_(theirs._model.parameters(), recipe.clip)
        recipe.optimizer.step()
        recipe.optimizer.zero_grad(set_to_none=True)
        recipe.scheduler.step()
        return float(running / num_tokens)


class Bound(Ours):
    """The matrix products of each method's step (section 8), at the speed they have alone."""

    def __call__(self, index: int) -> dict[str, Any]:
        """Tokens of step ``index``; FLOPs and seconds of its products for each method."""
        recipe = self.recipe
        micro = recipe._micro_rows(index)
        rows = [row for sequences in micro for seq in sequences for row in seq]
        every = sum(len(row) for row in rows)
        used = supervised = 0
        for sequences in micro:
            batch = collate_packed(sequences, recipe.tokenizer.pad_id, recipe.spec)
            used += batch.num_tokens
            supervised += int(recipe.spec.supervised(batch.span_ids_BS, batch.branch_BS).sum())
        needed = {
            "torchtune": self._flops(every, every, every, teacher=True),
            "live": self._flops(used, supervised, supervised, teacher=True),
            "cached": self._flops(used, supervised, supervised, teacher=False),
        }
        speed = self._speeds(used // len(micro), supervised // len(micro))
        seconds = {
            method: sum(flops / speed[product] for product, flops in products.items())
            for method, products in needed.items()
        }
        return {
            "tokens": every,
            "supervised": supervised,
            "flops": {method: sum(products.values()) for method, products in needed.items()},
            "seconds": seconds,
        }

    def _flops(self, tokens: int, last: int, head: int, *, teacher: bool) -> Counter[Product]:
        """FLOPs per product; ``last``: positions of the last layer, where it can skip others."""
        models = [(self.recipe.student, True)]
        if teacher:
            models.append((self.recipe.teacher.model, False))
        flops: Counter[Product] = Counter()
        for model, trained in models:
            for shape, skips in linears(model):
                flops[*shape, trained] += _cost(shape, trained) * (last if skips else tokens)
            flops[*head_shape(model), trained] += _cost(head_shape(model), trained) * head
        return flops

    def _speeds(self, tokens: int, supervised: int) -> dict[Product, float]:
        """FLOP/s of each product, for a micro-batch of the mean size."""
        recipe = self.recipe
        heads = {head_shape(recipe.student), head_shape(recipe.teacher.model)}
        products = self._flops(1, 1, 1, teacher=True)
        return {
            product: speed_of(
                product,
                supervised if product[:2] in heads else tokens,
                recipe.dtype,
                recipe.device,
            )
            for product in products
        }


def _cost(shape: tuple[int, int], trained: bool) -> int:
    """FLOPs per token of a product, with both gradients where it is trained."""
    return (6 if trained else 2) * shape[0] * shape[1]


def linears(model: nn.Module) -> Iterator[tuple[tuple[int, int], bool]]:
    """Shapes (in, out) of the layers' projections, and whether one may skip positions."""
    last = f"{len(model.layers) - 1}."
    for name, module in model.layers.named_modules():
        if isinstance(module, nn.Linear):
            keys_or_values = name.endswith(("k_proj", "v_proj"))
            skips = name.startswith(last) and not keys_or_values
            yield (
                (module.in_features, module.out_features),
                skips and saves_at(model) == "queries and mlp",
            )


def head_shape(model: nn.Module) -> tuple[int, int]:
    """Width and vocabulary."""
    vocab, width = head_of(model).weight_VD.shape
    return width, vocab


def speed_of(product: Product, tokens: int, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of one product, with its two gradients where it is trained."""
    inner, outer, trained = product
    x = torch.randn(max(tokens, 1), inner, dtype=dtype, device=device)
    weight = torch.randn(outer, inner, dtype=dtype, device=device)
    y = torch.zeros(len(x), outer, dtype=dtype, device=device)
    gradients = torch.zeros_like(x), torch.zeros_like(weight)
    flops = _cost((inner, outer), trained) * len(x)
    loops = max(1, int(2e9 / flops))

    def run() -> None:
        torch.mm(x, weight.t(), out=y)
        if trained:
            torch.mm(y, weight, out=gradients[0])
            torch.mm(y.t(), x, out=gradients[1])

    run()
    start = _now(device)
    for _ in range(loops):
        run()
    return loops * flops / (_now(device) - start)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def start(method: str, cfg: DictConfig) -> Callable[[int], dict[str, Any]]:
    """What a worker does with the index of a step."""
    if method == "bound":
        return Bound(cfg)
    runner = Torchtune(cfg) if method == "torchtune" else Ours(cfg)
    device = runner.recipe.device
    _forget_peak(device)

    def answer(index: int) -> dict[str, Any]:
        begun = _now(device)
        loss = runner.step(index)
        return {"seconds": _now(device) - begun, "loss": loss, "peak_mb": _peak_mb(device)}

    return answer


def _forget_peak(device: torch.device) -> None:
    """What loading took does not count."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**10
    raise OSError("/proc/self/status has no VmHWM: memory is measured on Linux only")


def load(file: Path) -> ModuleType:
    """A recipe's file as a module."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"no recipe at {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


def write_configs(args: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """The shipped configs with this run's settings, by worker, and ``cache`` for the cache."""
    training_config, cache_config = SETS[args.models]
    cache = str(args.cache or folder / "cache")
    rows = args.batch_size * args.accumulation * (args.steps + 1)
    common = {"dtype": args.dtype, "heldout": None, "dataset": {"limit": rows}}
    step = {
        "batch_size": args.batch_size,
        "gradient_accumulation_steps": args.accumulation,
        "max_steps": (args.steps + 1) * args.repeats,
        "epochs": args.repeats,
        "metric_logger": None,
    }
    changes = {
        **dict.fromkeys(("bound", "torchtune", "live"), (training_config, step)),
        "cached": (f"{training_config}_cached", {**step, "teacher": {"path": cache}}),
        "cache": (cache_config, {"output_dir": cache, "student": None}),
    }
    written = {}
    for name, (config, changed) in changes.items():
        text = (ROOT / "configs" / args.models / f"{config}.yaml").read_text()
        cfg = OmegaConf.create(text.replace(DEMO, str(args.model)))
        run = {"output_dir": str(folder / name)}
        written[name] = folder / f"{name}.yaml"
        OmegaConf.save(OmegaConf.merge(cfg, common, run, changed), written[name])
    return written


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One row per method: medians over steps that every method ran, one after another."""
    configs = write_configs(args, folder)
    if "cached" in args.methods:
        recipe = ROOT / "recipes" / "cache_teacher.py"
        command = [sys.executable, recipe, "--config", configs["cache"]]
        subprocess.run(command, check=True, stdout=sys.stderr)
    workers: list[Worker] = []
    try:
        for name in ("bound", *args.methods):
            workers.append(
                Worker(name, [__file__, "--worker", name, "--worker-config", str(configs[name])])
            )
        for worker in workers:
            worker.ask(0)  # starts threads, allocates optimizer states
        load_average = os.getloadavg()[0]
        order = [1 + index for _ in range(args.repeats) for index in range(args.steps)]
        answers = [{worker.name: worker.ask(index) for worker in workers} for index in order]
    finally:
        for worker in workers:
            worker.close()
    shared = {
        "steps": len(order),
        "load_average": round(load_average, 2),
        "hardware": hardware(),
        "versions": versions(),
    }
    return [_row(method, answers, args) | shared for method in args.methods]


def _row(method: str, answers: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    seconds = [a[method]["seconds"] for a in answers]
    tokens = [a["bound"]["tokens"] for a in answers]
    bound = [a["bound"]["seconds"][method] for a in answers]
    base = [a["torchtune"]["seconds"] for a in answers] if "torchtune" in answers[0] else None
    return {
        "models": args.models,
        "method": method,
        "dtype": args.dtype,
        "tokens_per_s": round(_median(n / s for n, s in zip(tokens, seconds)), 2),
        "times_torchtune": base and round(_median(b / s for b, s in zip(base, seconds)), 3),
        "peak_mb": round(max(a[method]["peak_mb"] for a in answers), 1),
        "seconds": round(_median(seconds), 4),
        "seconds_min": round(min(seconds), 4),
        "seconds_max": round(max(seconds), 4),
        "bound_tokens_per_s": round(_median(n / s for n, s in zip(tokens, bound)), 2),
        "share_of_bound": round(_median(b / s for b, s in zip(bound, seconds)), 3),
        "gflop_per_token": round(
            sum(a["bound"]["flops"][method] for a in answers) / sum(tokens) / 1e9, 4
        ),
        "supervised_share": round(sum(a["bound"]["supervised"] for a in answers) / sum(tokens), 3),
        "loss": answers[-1][method]["loss"],
        "config": {
            "batch_size": args.batch_size,
            "gradient_accumulation_steps": args.accumulation,
            "rows": args.batch_size * args.accumulation * args.steps,
            "compile": False,
        },
    }


def _median(values: Any) -> float:
    return statistics.median(values)


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{'method':10} {'tokens/s':>9} {'x torchtune':>12} {'peak MB':>8} {'bound t/s':>10} "
        f"{'share':>6}"
    ]
    lines += [
        f"{r['method']:10} {r['tokens_per_s']:9.1f} {r['times_torchtune'] or float('nan'):12.2f} "
        f"{r['peak_mb']:8.0f} {r['bound_tokens_per_s']:10.1f} {r['share_of_bound']:6.1%}"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="a JSON line per method")
    parser.add_argument("--models", choices=SETS, default="smollm2", help="tiny: for a test")
    parser.add_argument("--model", default=DEMO, help=f"folder of SmolLM2's weights ({DEMO})")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--dtype", default="fp32", help="fp32 (default) or bf16")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps, each on other rows")
    parser.add_argument("--repeats", type=int, default=3, help="times that they are all run")
    parser.add_argument("--batch-size", type=int, default=1, help="rows per forward pass")
    parser.add_argument("--accumulation", type=int, default=2, help="forward passes per step")
    parser.add_argument("--cache", help="folder of the teacher cache; made if it is not there")
    parser.add_argument("--worker", choices=("bound", *METHODS), help=argparse.SUPPRESS)
    parser.add_argument("--worker-config", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(lambda: start(args.worker, OmegaConf.load(args.worker_config)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args, Path(folder))
    print("\n".join(map(json.dumps, rows)) if args.json else _table(rows), flush=True)


if __name__ == "__main__":
    main()
