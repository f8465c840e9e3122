"""Time and memory of the fused structured loss, beside its peers and its physical bound.

Forward KL, forward and backward, from hidden states [T, D] and a mask of supervised tokens to the
loss and the gradients of the student's hidden states and head. Every method runs in a process of
its own; the processes take turns, so that a busy machine slows all alike. Where it does not, CPU
seconds are the steadier figure (with OMP_NUM_THREADS=1: no thread then waits for another).

    python benchmarks/bench_structured_kd_loss.py --json --peers-python VENV/bin/python
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
OURS = ("bound", "ours", "eager", "torchtune")
PEERS = ("liger", "trl", "trl_gathered")
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """T tokens, V vocabulary, student's and teacher's width, supervised fraction."""

    tokens: int
    vocab: int
    student: int
    teacher: int
    fraction: float


CASES = {
    "smollm2": Case(2048, 49152, 576, 576, 0.3),
    "llama3": Case(1024, 128256, 1024, 2048, 0.25),
}
QUICK = {"quick": Case(256, 2048, 64, 96, 0.3)}


class Inputs:
    """The tensors of a case, the same in every process."""

    def __init__(self, case: Case) -> None:
        g = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(case.tokens, case.student, generator=g).requires_grad_()
        self.weight = torch.randn(case.vocab, case.student, generator=g).mul_(0.05).requires_grad_()
        self.teacher_hidden = torch.randn(case.tokens, case.teacher, generator=g)
        self.teacher_weight = torch.randn(case.vocab, case.teacher, generator=g).mul_(0.05)
        self.targets = torch.randint(case.vocab, (case.tokens,), generator=g)
        order = torch.randperm(case.tokens, generator=g)
        self.rows = order[: int(case.fraction * case.tokens)].sort().values
        self.mask = torch.zeros(case.tokens, dtype=torch.bool)
        self.mask[self.rows] = True
        self.kinds = torch.randint(1, 3, (len(self.rows),), generator=g)

    @cached_property
    def room(self) -> tuple[Tensor, Tensor]:
        """Logits of the supervised rows, for the bound."""
        size = len(self.rows), len(self.weight)
        return torch.zeros(size), torch.zeros(size)

    @property
    def gradient_bytes(self) -> int:
        return 4 * (self.hidden.numel() + self.weight.numel())


def bound(x: Inputs) -> float:
    """The four products alone: two projections, the gradients of hidden states and head.

    All rows at once, into logits that are allocated beforehand.
    """
    with torch.no_grad():
        hidden, teacher = x.hidden[x.rows], x.teacher_hidden[x.rows]
        logits, teacher_logits = x.room
        torch.mm(hidden, x.weight.t(), out=logits)
        torch.mm(teacher, x.teacher_weight.t(), out=teacher_logits)
        x.hidden.grad = torch.zeros_like(x.hidden)
        x.hidden.grad[x.rows] = logits @ x.weight
        x.weight.grad = teacher_logits.t() @ hidden
    return float("nan")


def ours(x: Inputs) -> float:
    """FusedStructuredKDLoss on gathered rows, with its metrics."""
    from sad_components.loss import FusedStructuredKDLoss

    return _structured(x, FusedStructuredKDLoss(normalize="pooled"))


def eager(x: Inputs) -> float:
    """StructuredKDLoss, the plain reference, on gathered rows."""
    from sad_components.loss import StructuredKDLoss

    return _structured(x, StructuredKDLoss(normalize="pooled"))


def _structured(x: Inputs, loss: Any) -> float:
    from sad_components.loss import Head, HiddenRows

    out = loss.from_hidden(
        HiddenRows(x.hidden[x.rows], Head(x.weight)),
        HiddenRows(x.teacher_hidden[x.rows], Head(x.teacher_weight)),
        x.targets[x.rows],
        x.kinds,
        counts=loss.spec.count(x.kinds),
    )
    out.loss.backward()
    return out.loss.item()


def torchtune(x: Inputs) -> float:
    """ForwardKLWithChunkedOutputLoss as torchtune's recipe runs it: 8 chunks of all rows.

    Its value leaves out the teacher's entropy; the gradient is the same.
    """
    from torchtune.modules.loss import ForwardKLWithChunkedOutputLoss

    loss_fn = ForwardKLWithChunkedOutputLoss()
    chunks = loss_fn.num_output_chunks
    student = [F.linear(h, x.weight) for h in x.hidden[None].chunk(chunks, dim=1)]
    with torch.no_grad():
        hidden = x.teacher_hidden[None].chunk(chunks, dim=1)
        teacher = [F.linear(h, x.teacher_weight) for h in hidden]
    labels = x.targets.masked_fill(~x.mask, loss_fn.ignore_index)[None]
    loss = loss_fn(student, teacher, labels)
    del student, teacher
    loss.backward()
    return loss.item()


def liger(x: Inputs) -> float:
    """LigerFusedLinearJSDLoss with beta 0 (forward KL), its defaults, on gathered rows."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss_fn = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0)
    loss = loss_fn(
        x.hidden[x.rows],
        x.weight,
        x.teacher_hidden[x.rows],
        x.teacher_weight,
        x.targets[x.rows],
    )
    loss.backward()
    return loss.item()


def trl(x: Inputs) -> float:
    """TRL's chunked divergence with beta 0 (forward KL), as its trainer calls it."""
    return _trl(x.hidden, x.teacher_hidden, x.mask, x)


def trl_gathered(x: Inputs) -> float:
    """The same on rows gathered by hand."""
    return _trl(x.hidden[x.rows], x.teacher_hidden[x.rows], x.mask[x.rows], x)


def _trl(hidden: Tensor, teacher: Tensor, mask: Tensor, x: Inputs) -> float:
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    loss, _, _ = _chunked_divergence_loss(
        hidden[None], teacher[None], x.weight, x.teacher_weight, mask[None], beta=0.0
    )
    loss.backward()
    return loss.item()


METHODS: dict[str, Callable[[Inputs], float]] = {
    f.__name__: f for f in (bound, ours, eager, torchtune, liger, trl, trl_gathered)
}
PACKAGES = ("torch", "torchtune", "liger-kernel", "trl")


def serve(method: str, case: Case) -> None:
    """A worker: measures memory first, then one timed run for every line that it reads."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no reply
    run, inputs = METHODS[method], Inputs(case)
    run(inputs)  # compiles, starts threads
    extra = _extra_bytes(run, inputs)
    reply = {"extra_mb": extra / MIB, "versions": _versions()}
    print(json.dumps(reply), file=replies)
    for _ in sys.stdin:
        _drop_gradients(inputs)
        start, cpu = time.perf_counter(), time.process_time()
        loss = run(inputs)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        reply = {"seconds": seconds, "cpu": cpu, "loss": loss}
        print(json.dumps(reply), file=replies)


def _extra_bytes(run: Callable[[Inputs], float], inputs: Inputs) -> int:
    """Peak resident memory of a run beyond what lay there before and the returned gradients."""
    _drop_gradients(inputs)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    run(inputs)
    return max(0, _status("VmHWM") - before - inputs.gradient_bytes)


def _drop_gradients(inputs: Inputs) -> None:
    inputs.hidden.grad = inputs.weight.grad = None


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}: memory is measured on Linux only")


def _versions() -> dict[str, str]:
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


class Worker:
    """The process of one method."""

    def __init__(self, method: str, case: str, python: str) -> None:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [python, __file__, "--worker", method, "--case", case],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        self.method, self.loss = method, float("nan")
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        first = self._reply()
        self.extra_mb, self.versions = first["extra_mb"], first["versions"]

    def run(self) -> None:
        assert self._process.stdin is not None
        print("run", file=self._process.stdin, flush=True)
        reply = self._reply()
        self.seconds.append(reply["seconds"])
        self.cpu.append(reply["cpu"])
        self.loss = reply["loss"]

    def close(self) -> None:
        """Ends the process, also in the middle of a run."""
        self._process.kill()
        self._process.wait()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of method {self.method!r} ended; see its error above")
        return json.loads(line)


def measure(case: str, methods: dict[str, str], rounds: int) -> list[dict[str, Any]]:
    """One row per method: medians over rounds in which every method ran once, one after another."""
    workers: list[Worker] = []
    try:
        for method, python in methods.items():
            workers.append(Worker(method, case, python))
        load = os.getloadavg()[0]
        for _ in range(rounds):
            for worker in workers:
                worker.run()
    finally:
        for worker in workers:
            worker.close()
    bound = next(worker for worker in workers if worker.method == "bound")
    own = next(worker for worker in workers if worker.method == "ours")
    shared = {"rounds": rounds, "load_average": round(load, 2), "hardware": _hardware()}
    return [_row(case, worker, bound, own) | shared for worker in workers]


def _row(case: str, worker: Worker, bound: Worker, own: Worker) -> dict[str, Any]:
    seconds = worker.seconds
    return {
        "case": case,
        "method": worker.method,
        "seconds": round(statistics.median(seconds), 4),
        "extra_mb": round(worker.extra_mb, 1),
        "loss": None if worker.loss != worker.loss else worker.loss,
        "seconds_min": round(min(seconds), 4),
        "seconds_max": round(max(seconds), 4),
        "times_bound": round(_paired(seconds, bound.seconds), 3),
        "times_ours": round(_paired(seconds, own.seconds), 3),
        "cpu_seconds": round(statistics.median(worker.cpu), 4),
        "cpu_times_bound": round(_paired(worker.cpu, bound.cpu), 3),
        "cpu_times_ours": round(_paired(worker.cpu, own.cpu), 3),
        "config": asdict(_case(case)) | {"dtype": "float32"},
        "versions": worker.versions,
    }


def _paired(seconds: list[float], other: list[float]) -> float:
    """Median of the ratios of runs of one round."""
    return statistics.median(a / b for a, b in zip(seconds, other, strict=True))


def _hardware() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
    }


def _case(name: str) -> Case:
    return (CASES | QUICK)[name]


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{'case':8} {'method':13} {'seconds':>8} {'x bound':>8} {'x ours':>7} {'extra MB':>9} "
        f"{'CPU s':>8} {'x bound':>8} {'x ours':>7}"
    ]
    lines += [
        f"{r['case']:8} {r['method']:13} {r['seconds']:8.3f} {r['times_bound']:8.2f} "
        f"{r['times_ours']:7.2f} {r['extra_mb']:9.1f} "
        f"{r['cpu_seconds']:8.3f} {r['cpu_times_bound']:8.2f} {r['cpu_times_ours']:7.2f}"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="a JSON line per case and method")
    parser.add_argument("--quick", action="store_true", help="one small case, for a test")
    parser.add_argument("--peers-python", help="interpreter with trl and liger-kernel")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="beside bound and ours")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each method (7)")
    parser.add_argument("--case", choices=CASES | QUICK, help="only this case")
    parser.add_argument("--worker", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(args.worker, _case(args.case))
        return
    methods = dict.fromkeys(OURS, sys.executable)
    if args.peers_python:
        methods |= dict.fromkeys(PEERS, args.peers_python)
    else:
        print("without --peers-python: liger and trl are skipped", file=sys.stderr)
    if args.methods:
        chosen = {"bound", "ours", *args.methods}
        methods = {name: python for name, python in methods.items() if name in chosen}
    names = [args.case] if args.case else list(QUICK if args.quick else CASES)
    for name in names:
        rows = measure(name, methods, args.rounds)
        print("\n".join(map(json.dumps, rows)) if args.json else _table(rows), flush=True)


if __name__ == "__main__":
    main()
