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
import statistics
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
from turns import Worker, hardware, serve

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
        self.loss: Any = None
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
    """FusedStructuredKDLoss on gathered rows, with its metrics; one for all calls, as in a run."""
    from sad_components.loss import FusedStructuredKDLoss

    if x.loss is None:
        x.loss = FusedStructuredKDLoss(normalize="pooled")
    return _structured(x, x.loss)


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


def start(method: str, case: Case) -> Callable[[str], dict[str, Any]]:
    """What a worker does with ``memory`` and with ``time``: one run, measured."""
    run, inputs = METHODS[method], Inputs(case)
    run(inputs)  # compiles, starts threads

    def answer(question: str) -> dict[str, Any]:
        if question == "memory":
            return {"extra_mb": _extra_bytes(run, inputs) / MIB, "versions": _versions()}
        _drop_gradients(inputs)
        begun, cpu = time.perf_counter(), time.process_time()
        loss = run(inputs)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        return {"seconds": seconds, "cpu": cpu, "loss": loss}

    return answer


def _extra_bytes(run: Callable[[Inputs], float], inputs: Inputs) -> int:
    """Peak resident memory of a run beyond what lay there before and the returned gradients."""
    _drop_gradients(inputs)
    inputs.loss = None  # what it keeps from call to call counts
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


class Method:
    """What is measured of one method, in a process of its own: memory first, then times."""

    def __init__(self, name: str, case: str, python: str) -> None:
        command = [__file__, "--worker", name, "--case", case]
        self.name, self.worker, self.loss = name, Worker(name, command, python), float("nan")
        self.seconds: list[float] = []
        self.cpu: list[float] = []

    def prepare(self) -> None:
        """Waits until the process is ready and has measured its memory."""
        first = self.worker.ask("memory")
        self.extra_mb, self.versions = first["extra_mb"], first["versions"]

    def run(self) -> None:
        """One timed run."""
        reply = self.worker.ask("time")
        self.seconds.append(reply["seconds"])
        self.cpu.append(reply["cpu"])
        self.loss = reply["loss"]


def measure(case: str, methods: dict[str, str], rounds: int) -> list[dict[str, Any]]:
    """One row per method: medians over rounds in which every method ran once, one after another."""
    measured: list[Method] = []
    try:
        for name, python in methods.items():
            measured.append(Method(name, case, python))
            measured[-1].prepare()
        load = os.getloadavg()[0]
        for _ in range(rounds):
            for method in measured:
                method.run()
    finally:
        for method in measured:
            method.worker.close()
    bound, own = (next(m for m in measured if m.name == name) for name in ("bound", "ours"))
    shared = {"rounds": rounds, "load_average": round(load, 2), "hardware": hardware()}
    return [_row(case, method, bound, own) | shared for method in measured]


def _row(case: str, method: Method, bound: Method, own: Method) -> dict[str, Any]:
    seconds = method.seconds
    return {
        "case": case,
        "method": method.name,
        "seconds": round(statistics.median(seconds), 4),
        "extra_mb": round(method.extra_mb, 1),
        "loss": None if method.loss != method.loss else method.loss,
        "seconds_min": round(min(seconds), 4),
        "seconds_max": round(max(seconds), 4),
        "times_bound": round(_paired(seconds, bound.seconds), 3),
        "times_ours": round(_paired(seconds, own.seconds), 3),
        "cpu_seconds": round(statistics.median(method.cpu), 4),
        "cpu_times_bound": round(_paired(method.cpu, bound.cpu), 3),
        "cpu_times_ours": round(_paired(method.cpu, own.cpu), 3),
        "config": asdict(_case(case)) | {"dtype": "float32"},
        "versions": method.versions,
    }


def _paired(seconds: list[float], other: list[float]) -> float:
    """Median of the ratios of runs of one round."""
    return statistics.median(a / b for a, b in zip(seconds, other, strict=True))


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
        serve(lambda: start(args.worker, _case(args.case)))
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
