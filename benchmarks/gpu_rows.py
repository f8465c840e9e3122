"""What ``gpu_check.py`` looks at: each row trains or computes something and compares it.

The CPU reference of a row is a golden file (``tests/golden/``): losses of the tiny config under a
switch, trained on a CPU. Speed and memory come from larger random models.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from sad_components.doctor.checks import Doctor
from sad_components.doctor.config_file import read_config
from sad_components.loss import FusedStructuredKDLoss, Head, HiddenRows, StructuredKDLoss
from sad_components.models import from_scratch, save_student

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("support", "golden")]

import make_golden  # noqa: E402
from recipe_runs import run_recipe  # noqa: E402

TINY = ROOT / "configs" / "tiny" / "structured_kd.yaml"
#: Largest relative difference of a loss from the golden one: in fp32, and where values are rounded.
#: Chosen before any GPU was seen.
EXACT, ROUNDED = 1e-3, 2e-2
#: Width, layers, heads, key and value heads, MLP width of student and teacher; rows a step, rows.
SIZES = {
    "tiny": ((64, 2, 4, 2, 128), (64, 4, 4, 2, 128), 2, 8),
    "small": ((576, 30, 9, 3, 1536), (960, 32, 15, 5, 2560), 8, 48),
    "large": ((960, 32, 15, 5, 2560), (2048, 24, 32, 32, 8192), 8, 48),
}
_LAYOUT = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
_LAYOUT = (*_LAYOUT, "intermediate_size")
#: Steps that are not timed: kernels load, and are chosen or compiled.
_WARM_UP = 2

Report = Callable[..., None]


class NotHere(Exception):
    """What this machine lacks for a row."""


@dataclass(frozen=True)
class Machine:
    """Where rows run.

    Args:
        device: ``cuda`` or ``cpu``.
        size: of the models that speed is measured on, a name in ``SIZES``.
    """

    device: str
    size: str


@dataclass(frozen=True)
class Switch:
    """A switch of the recipe: its losses against a golden file, then its speed and memory.

    Args:
        golden: name of the file.
        limit: largest relative difference of a loss.
        compared: further overrides of the run that is compared.
        timed: overrides of the run that is timed, beside the golden file's switch; it is in bf16.
        gpu_only: why a CPU cannot run it; None if it can.
    """

    golden: str
    limit: float = ROUNDED
    compared: tuple[str, ...] = ()
    timed: tuple[str, ...] = ()
    gpu_only: str | None = None

    def __call__(self, machine: Machine, report: Report) -> None:
        if self.gpu_only and machine.device == "cpu":
            raise NotHere(self.gpu_only)
        given = (f"device={machine.device}", *self.compared)
        _, losses = make_golden.train(self.golden, Path("compared"), *given)
        report(difference=difference(losses, golden(self.golden)), limit=self.limit)
        report(**speed(machine, (*make_golden.SWITCHES[self.golden], *self.timed)))


def golden(name: str) -> list[float]:
    """Losses that a CPU gave."""
    return json.loads((ROOT / "tests" / "golden" / f"{name}.json").read_text())["losses"]


def difference(losses: Sequence[float], expected: Sequence[float]) -> float:
    """The largest relative one."""
    return max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True))


def prepare(machine: Machine) -> None:
    """Writes the models that speed is measured on, once for all rows: folders here."""
    student, teacher, *_ = SIZES[machine.size]
    for name, sizes in (("student", student), ("teacher", teacher)):
        vocab = 512 if machine.size == "tiny" else 49152
        config = {**dict(zip(_LAYOUT, sizes)), "model_type": "llama", "vocab_size": vocab}
        config |= {"max_position_embeddings": 2048, "tie_word_embeddings": True}
        save_student(from_scratch(config, dtype="bf16"), Path(name))


def speed(machine: Machine, overrides: Sequence[str]) -> dict[str, float]:
    """Tokens/s and memory of the recipe on larger models, and what `sad doctor` says of both."""
    *_, rows, limit = SIZES[machine.size]
    given = [f"device={machine.device}", "dtype=bf16", f"batch_size={rows}"]
    given += [f"dataset.limit={limit}", "heldout=null", "metric_logger=null", "output_dir=timed"]
    given += ["loss._component_=sad_components.loss.FusedStructuredKDLoss"]
    cfg = configured(*given, *overrides)
    for name in ("student", "teacher"):
        node = cfg[name]
        node["_component_"] = node["_component_"].replace("from_scratch", "from_pretrained")
        node.path = f"../models/{name}"
        for key in ("config", "seed", "std"):
            node.pop(key, None)
    OmegaConf.save(cfg, "timed.yaml")
    checks = Doctor(read_config("timed.yaml")).checks()
    memory = next((check.figures for check in checks if check.name == "memory"), {})
    run_recipe(cfg)
    lines = [json.loads(line) for line in Path("timed/metrics.jsonl").read_text().splitlines()]
    # a GPU's figure is of torch's own memory, without the context
    without = memory.get("process", 0) if machine.device == "cuda" else 0
    return {
        "tokens_per_s": statistics.median(line["tokens_per_s"] for line in lines[_WARM_UP:]),
        "memory_gb": lines[-1]["peak_memory_mb"] / 1e3,
        "estimated_gb": (memory["total"] - without) / 1e9 if memory else float("nan"),
    }


def configured(*overrides: str) -> DictConfig:
    """The tiny config, changed."""
    return OmegaConf.merge(OmegaConf.load(TINY), OmegaConf.from_dotlist(list(overrides)))


# -- rows that are no switch ------------------------------------------------------------------


def attention(machine: Machine, report: Report) -> None:
    """Which kernel the layers' attention takes in bf16, and the logits against fp32 on a CPU."""
    sizes = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 512}
    sizes |= {"num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 1024}
    config = {"model_type": "llama", **sizes}
    exact = from_scratch(config, seed=1, std=None, dtype="fp32", device="cpu")
    model = from_scratch(config, seed=1, std=None, dtype="bf16", device=machine.device)
    tokens = torch.randint(512, (2, 512), generator=torch.Generator().manual_seed(0))
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        logits = model(tokens.to(machine.device))
        logits.float().square().mean().backward()
    kernels = {e.key for e in seen.key_averages() if "_scaled_dot_product_" in e.key}
    forward = sorted(k.removeprefix("aten::_") for k in kernels if "backward" not in k)
    report(difference=relative(logits, exact(tokens)), limit=2 * ROUNDED)
    report(note=", ".join(forward))
    if not any("flash" in name or "cudnn" in name for name in forward):
        raise RuntimeError(f"attention took {forward or 'no fused kernel'}, not flash attention")


def fused_loss(machine: Machine, report: Report) -> None:
    """The fused loss: near the plain one in fp64, no wait for the device, against its products."""
    on_gpu = machine.device == "cuda"
    tokens, vocab, width = (8192, 49152, 960) if on_gpu else (64, 512, 64)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    found = _loss_and_gradients(FusedStructuredKDLoss(), machine.device, dtype)
    exact = _loss_and_gradients(StructuredKDLoss(), "cpu", torch.float64)
    report(difference=max(map(relative, found, exact)), limit=ROUNDED)
    case = _case(tokens, vocab, width, dtype, machine.device)
    loss = FusedStructuredKDLoss()
    _run_loss(loss, *case)  # buffers are made, kernels loaded
    if on_gpu:
        torch.cuda.set_sync_debug_mode("error")
    try:
        _run_loss(loss, *case)
    finally:
        if on_gpu:
            torch.cuda.set_sync_debug_mode("default")
    seconds = timed(lambda: _run_loss(loss, *case), machine.device)
    student, teacher, *_ = case
    logits = torch.empty(tokens, vocab, dtype=dtype, device=machine.device)

    def products() -> None:
        torch.mm(student.hidden_ND, student.head.weight_VD.t(), out=logits)
        torch.mm(teacher.hidden_ND, teacher.head.weight_VD.t(), out=logits)
        torch.mm(logits, student.head.weight_VD)
        torch.mm(logits.t(), student.hidden_ND)

    with torch.no_grad():
        bound = timed(products, machine.device)
    waits = "waits for nothing; " if on_gpu else ""
    report(tokens_per_s=tokens / seconds, note=f"{waits}{seconds / bound:.2f} x its four products")


def _case(tokens: int, vocab: int, width: int, dtype: torch.dtype, device: str) -> tuple[Any, ...]:
    """Student rows, teacher rows, targets, kinds and counts; the same numbers everywhere."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=g) * shape[-1] ** -0.25
        return values.bfloat16().to(device, dtype)

    student = HiddenRows(
        normal(tokens, width).requires_grad_(), Head(normal(vocab, width).requires_grad_())
    )
    teacher = HiddenRows(normal(tokens, width), Head(normal(vocab, width)))
    targets = torch.randint(vocab, (tokens,), generator=g).to(device)
    kinds = torch.randint(1, 3, (tokens,), generator=g).to(device)
    return student, teacher, targets, kinds, FusedStructuredKDLoss().spec.count(kinds)


def _run_loss(loss: StructuredKDLoss, student: Any, teacher: Any, *rest: Tensor) -> Tensor:
    targets, kinds, counts = rest
    student.hidden_ND.grad = student.head.weight_VD.grad = None
    out = loss.from_hidden(student, teacher, targets, kinds, counts=counts).loss
    out.backward()
    return out.detach()


def _loss_and_gradients(
    loss: StructuredKDLoss, device: str, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    case = _case(300, 1000, 64, dtype, device)
    value = _run_loss(loss, *case)
    return value, case[0].hidden_ND.grad, case[0].head.weight_VD.grad


def relative(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, relative to ``expected``."""
    found, expected = (tensor.detach().cpu().double() for tensor in (found, expected))
    return float((found - expected).norm() / expected.norm())


def timed(call: Callable[[], Any], device: str, repeats: int = 5) -> float:
    """Median seconds of a call."""
    seconds = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])


def checkpoints(machine: Machine, report: Report) -> None:
    """``async_save`` writes what saving at once writes; a resumed run ends as a whole one."""
    saving = (f"device={machine.device}", "save_every_n_steps=1", "keep_checkpoints=9")
    saving = (*saving, "lr_scheduler=null")  # a shorter run's learning rates are the same
    make_golden.train("fp32", Path("whole"), *saving)
    make_golden.train("fp32", Path("beside"), *saving, "async_save=true")
    make_golden.train("fp32", Path("parts"), *saving, "async_save=true", "max_steps=3")
    make_golden.train("fp32", Path("parts"), *saving, "async_save=true", "resume=true")
    steps = sorted(path.name for path in Path("whole/checkpoints").iterdir())
    files = [f"checkpoints/{step}/student/model.safetensors" for step in steps]
    files.append("student/model.safetensors")
    far = {
        name: max(_apart(Path("whole") / file, Path(name) / file) for file in files)
        for name in ("beside", "parts")
    }
    equal = ", ".join(
        f"{what} {'bit for bit' if far[name] == 0 else 'not bit for bit'}"
        for name, what in (("beside", "async"), ("parts", "resumed"))
    )
    report(difference=max(far.values()), limit=EXACT, note=equal)


def _apart(one: Path, other: Path) -> float:
    from safetensors.torch import load_file

    left, right = load_file(one), load_file(other)
    assert left.keys() == right.keys()
    return max(relative(right[name], left[name]) for name in left)


def two_ranks(machine: Machine, report: Report, *overrides: str) -> None:
    """FSDP2 on two processes: the losses of one."""
    if machine.device == "cuda" and torch.cuda.device_count() < 2:
        raise NotHere("needs two GPUs")
    given = (*make_golden.COMMON, f"device={machine.device}", "batch_size=1", "output_dir=two")
    OmegaConf.save(configured(*given, *overrides), "two.yaml")
    script = str(ROOT / "tests" / "support" / "many_runs.py")
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", script, "two.yaml"]
    done = subprocess.run([sys.executable, "-m", *launch], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    lines = [json.loads(line) for line in Path("two/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    report(difference=difference(losses, golden("fp32")), limit=EXACT)
    rate = statistics.median(line["tokens_per_s"] for line in lines[_WARM_UP:])
    report(note=f"{rate:,.0f} tokens/s (tiny models)")


def two_ranks_offloaded(machine: Machine, report: Report) -> None:
    """The same with ``fsdp_cpu_offload``."""
    if machine.device == "cpu":
        raise NotHere("fsdp_cpu_offload moves parts out of a GPU")
    two_ranks(machine, report, "fsdp_cpu_offload=true")


def own_products(machine: Machine, report: Report) -> None:
    """How near this device's matrix products in bf16 are, and how fast: what all else rests on."""
    size = 4096 if machine.device == "cuda" else 256
    g = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=g).bfloat16() for _ in range(2))
    a, b = left.to(machine.device), right.to(machine.device)
    rows = slice(0, 64)
    exact = left[rows].double() @ right.double()
    report(difference=relative((a @ b)[rows].cpu(), exact), limit=EXACT * 5)
    seconds = timed(lambda: torch.mm(a, b), machine.device)
    report(note=f"{2 * size**3 / seconds / 1e12:,.3g} TFLOP/s in bf16")


_FP8 = {"compared": ("dtype=bf16",), "timed": ("compile=true",)}  # as it is meant to be used
#: By name, the most telling ones first: what ten minutes do not reach is not run.
ROWS: dict[str, Callable[[Machine, Report], None]] = {
    "products": own_products,
    "fp32": Switch("fp32", EXACT, timed=("dtype=fp32",)),
    "bf16": Switch("bf16"),
    "attention": attention,
    "fused_loss": fused_loss,
    "compile": Switch("compile", EXACT),
    "packing": Switch("packing", EXACT, timed=("max_tokens_per_batch=4096",)),
    "fp8_tensorwise": Switch("fp8_tensorwise", **_FP8),
    "fp8_rowwise": Switch("fp8_rowwise", **_FP8),
    "nf4_lora": Switch("nf4_lora"),
    "activation_checkpointing": Switch("activation_checkpointing", EXACT),
    "activation_offloading": Switch(
        "fp32",
        EXACT,
        compared=("activation_offloading=true",),
        timed=("activation_offloading=true",),
        gpu_only="activations are moved out of a GPU",
    ),
    "checkpoints": checkpoints,
    "two_ranks": two_ranks,
    "two_ranks_cpu_offload": two_ranks_offloaded,
    "lora": Switch("lora", EXACT),
    "teacher_bf16": Switch("teacher_bf16", timed=("dtype=fp32",)),
    "teacher_int8": Switch("teacher_int8"),
    "teacher_fp8": Switch("teacher_fp8"),
    "teacher_nf4": Switch("teacher_nf4"),
    "qat_8da4w": Switch("qat_8da4w"),
    "qat_int4": Switch("qat_int4"),
    "dora": Switch("dora", EXACT),
}
