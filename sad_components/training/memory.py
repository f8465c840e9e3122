"""How much memory a distillation run needs, part by part, before it starts.

Shape legend: N supervised tokens, V vocabulary, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn
from torchtune.modules import TransformerDecoder

from sad_components.data import Batching, StepOrder
from sad_components.loss import Head, HiddenRows
from sad_components.loss.fused import FusedStructuredKDLoss, tile_bytes
from sad_components.models.hidden import head_of
from sad_components.models.lora import trained_parameters
from sad_components.models.quantized import Scheme
from sad_components.training.live_bytes import LiveBytes, StepBytes, StepShape, step_bytes
from sad_components.training.sharding import Sharding
from sad_components.training.switches import Switches, prepare_qat_

#: What a CUDA context and the libraries' workspaces take.
_CUDA_BASE = 1_000_000_000
#: Names of the probe: small enough to be quick, large enough that a row outweighs constants.
_PROBE_TOKENS, _PROBE_VOCAB = 64, 2048
#: Of a large data set so many rows, in the run's random order, are looked at for the largest batch.
_LOOKED_AT = 20_000


@dataclass
class MemoryEstimate:
    """Bytes per process, by what they hold.

    Args:
        parts: of the run's largest moment.
        moment: which one that is.
    """

    parts: dict[str, int] = field(default_factory=dict)
    moment: str = ""

    @property
    def total(self) -> int:
        """Bytes at the run's largest moment."""
        return sum(self.parts.values())


@dataclass
class RunShape:
    """What decides a run's memory beside its models.

    Args:
        step: its largest forward pass.
        heldout_tokens: supervised tokens of the held-out rows, whose teacher rows are kept.
        vocab: token ids that the loss reads.
        checkpointed: whether the student's layers run again in the backward pass.
        offloaded: whether what layers keep lies elsewhere meanwhile (``activation_offloading``).
        qat: what the student's linear layers round as, if they do.
        parts_elsewhere: whether the parts of spread models lie elsewhere (``fsdp_cpu_offload``).
        copies: whether checkpoints are written from a copy on the device (``async_save``).
        ranks: that the student's parameters are spread over.
        teacher_ranks: that the teacher's are.
    """

    step: StepShape
    heldout_tokens: int
    vocab: int
    checkpointed: bool = False
    offloaded: bool = False
    qat: Scheme | None = None
    parts_elsewhere: bool = False
    copies: bool = False
    ranks: int = 1
    teacher_ranks: int = 1

    @classmethod
    def read(
        cls,
        cfg: DictConfig,
        step: StepShape,
        heldout_tokens: int,
        vocab: int,
        dtype: torch.dtype,
        device: torch.device,
        world: int,
    ) -> RunShape:
        """The shape of a config's run, its switches included.

        Args:
            cfg: of recipe structured_kd.
            step: see the class.
            heldout_tokens: see the class.
            vocab: see the class.
            dtype: of the student.
            device: where the models will lie.
            world: processes.

        Raises:
            ConfigError: switches that cannot work.
        """
        switches = Switches.read(cfg, device, dtype)
        sharding = Sharding.read(cfg, world, device)
        saves = cfg.get("save_every_n_steps") or cfg.get("keep_best")
        return cls(
            step=step,
            heldout_tokens=heldout_tokens,
            vocab=vocab,
            checkpointed=switches.checkpointing,
            offloaded=switches.offloading,
            qat=switches.qat,
            parts_elsewhere=sharding.cpu_offload,
            copies=bool(cfg.get("async_save") and saves and device.type == "cpu"),
            **sharding.ranks,
        )


def estimate(
    student: TransformerDecoder,
    teacher: TransformerDecoder | None,
    loss: nn.Module,
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    run: RunShape,
    device: torch.device,
) -> MemoryEstimate:
    """What a process of the recipe holds at its largest moment.

    Args:
        student: on the meta device, in the run's dtype.
        teacher: likewise; None without a live teacher.
        loss: the config's.
        make_optimizer: the config's optimizer, of given parameters.
        run: shapes.
        device: where the models will lie.
    """
    dtype = next(student.parameters()).dtype
    step = _student_step(student, run)
    trained = list(trained_parameters(student).values())
    gradients = sum(p.nbytes for p in trained) // run.ranks
    state = sum(p.numel() for p in trained) * state_bytes(make_optimizer, dtype)
    fixed = {
        "process": base_bytes(device),  # here: the optimizer's first step has loaded modules
        "student weights": _weight_bytes(student) // run.ranks,
        "optimizer state": int(state / run.ranks),
    }
    if run.copies:
        fixed["copy for async_save"] = int(sum(p.nbytes for p in trained) + state)
    gathered = {"gathered parameters": _gathered_bytes(student, run.ranks)}
    forward = 0
    if teacher is not None:
        fixed["teacher weights"] = _weight_bytes(teacher) // run.teacher_ranks
        gathered["gathered parameters"] += _gathered_bytes(teacher, run.teacher_ranks)
        fixed["teacher rows"] = _rows_bytes(teacher, run.heldout_tokens + run.step.supervised)
        forward = step_bytes(teacher, run.step, train=False).forward
    head = _head_bytes(student, run.step.supervised)
    logits = {"logits": loss_bytes(loss, run, dtype, device, loss.spec.needs_teacher)}
    if isinstance(loss, FusedStructuredKDLoss) and device.type == "cpu":  # their room stays
        fixed, logits = fixed | logits, {}
    moments = {
        "teacher's forward pass": {"activations": forward},
        "loss": {"activations": step.saved, "gradients": head, **logits},
        "start of the backward pass": {
            "activations": step.saved + step.transient,
            "gradients": head,
        },
        "end of the backward pass": {"activations": step.transient, "gradients": gradients},
    }
    moments = {name: {**parts, **gathered} for name, parts in moments.items()}
    moments["optimizer step"] = {
        "gradients": gradients,
        "optimizer's temporaries": _temporaries(trained, device) // run.ranks,
    }
    if run.parts_elsewhere:
        elsewhere = ("student weights", "optimizer state", "teacher weights")
        fixed = {name: size for name, size in fixed.items() if name not in elsewhere}
        moments["end of the backward pass"].pop("gradients")
        moments.pop("optimizer step")
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    return MemoryEstimate({**fixed, **moments[moment]}, moment)


def _student_step(student: TransformerDecoder, run: RunShape) -> StepBytes:
    """What a step of the student keeps alive, under the run's switches."""
    if run.qat is not None:
        student = copy.deepcopy(student)
        prepare_qat_(student, run.qat)
    step = step_bytes(student, run.step, checkpointed=run.checkpointed)
    if run.offloaded:  # a layer's is still on its way while the next one computes
        return replace(step, saved=min(step.saved, 2 * step.saved // len(student.layers)))
    return step


def first_steps(order: StepOrder) -> list[list[int]]:
    """Row indices of each step of an epoch; of a large data set's the first 20,000 rows' only.

    Args:
        order: which rows each step reads.
    """
    count = min(order.steps_per_epoch, max(1, _LOOKED_AT // order.global_batch))
    return [order.step_rows(step) for step in range(count)]


def largest_step(
    batching: Batching, steps: Sequence[Sequence[int]], supervised_share: float, world: int = 1
) -> StepShape:
    """The forward pass with most positions.

    Args:
        batching: makes micro-batches.
        steps: row indices of each step.
        supervised_share: of the positions, in [0, 1].
        world: processes.
    """
    sizes = {
        (len(batch), max(sum(int(batching.lengths[i]) for i in rows) for rows in batch))
        for step in steps
        for rank in range(world)
        for batch in batching.micro_batches(step, rank, world)
    }
    rows, width = max(sizes, key=lambda size: (size[0] * size[1], size[1]), default=(1, 1))
    supervised = max(1, round(rows * width * supervised_share))
    return StepShape(rows, width, supervised, batching.packing)


def loss_bytes(
    loss: nn.Module, run: RunShape, dtype: torch.dtype, device: torch.device, teacher: bool
) -> int:
    """Logits and what the loss makes of them, for ``run``'s largest forward pass."""
    tokens, vocab = run.step.supervised, run.vocab
    if isinstance(loss, FusedStructuredKDLoss):
        chunk = min(tokens, loss.chunk_size(vocab, dtype, device))
        logits = chunk * vocab * dtype.itemsize * (3 if teacher else 2) // 2
        return logits + 4 * min(tile_bytes(device), chunk * vocab * 4)
    return int(tokens * vocab * _bytes_per_logit(loss, dtype, teacher))


def state_bytes(
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer], dtype: torch.dtype
) -> float:
    """Bytes of optimizer state per parameter, of one step on a small matrix."""
    matrix = nn.Parameter(torch.zeros(64, 64, dtype=dtype, device="cpu"))
    optimizer = make_optimizer([matrix])
    matrix.grad = torch.ones_like(matrix)
    optimizer.step()
    tensors = [v for v in optimizer.state[matrix].values() if isinstance(v, torch.Tensor)]
    return sum(t.nbytes for t in tensors if t.numel() > 1) / matrix.numel()


def base_bytes(device: torch.device) -> int:
    """What this process takes already: resident memory on a CPU, the context on a GPU."""
    return _CUDA_BASE if device.type == "cuda" else _process_memory("VmRSS")


def available_bytes(device: torch.device, processes: int = 1) -> int | None:
    """Memory that a process may use in all; None where the device is not here or does not say.

    Args:
        device: where its models lie; each process has a GPU of its own, but they share a CPU's
            memory.
        processes: on this machine.
    """
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return None
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    if device.type != "cpu" or not Path("/proc/meminfo").is_file():
        return None
    lines = Path("/proc/meminfo").read_text().splitlines()
    (free,) = (line.split()[1] for line in lines if line.startswith("MemAvailable"))
    room = min([int(free) * 1024, *_cgroup_room()])
    return room // processes + _process_memory("VmRSS")


def _cgroup_room() -> list[int]:
    """What a container's limit leaves, if there is one."""
    limit, used = (Path("/sys/fs/cgroup") / f"memory.{name}" for name in ("max", "current"))
    if not limit.is_file() or not limit.read_text().strip().isdigit():
        return []
    return [max(0, int(limit.read_text()) - int(used.read_text()))]


def _process_memory(name: str) -> int:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def _weight_bytes(model: nn.Module) -> int:
    return sum(stored_bytes(t) for t in (*model.parameters(), *model.buffers()))


def _gathered_bytes(model: TransformerDecoder, ranks: int) -> int:
    """Of a spread model what a rank holds whole: embedding, norm, head, and two layers.

    One computes while the next one arrives; their gradients take as much in the backward pass.
    """
    if ranks == 1:
        return 0
    layers = [_weight_bytes(layer) for layer in model.layers]
    return _weight_bytes(model) - sum(layers) + 2 * max(layers)


def stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor; of a quantised one those of its values and scales."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    return sum(stored_bytes(getattr(tensor, name)) for name in names)


def _rows_bytes(model: TransformerDecoder, tokens: int) -> int:
    """Last hidden states of ``tokens`` tokens."""
    weight_VD = head_of(model).weight_VD
    return tokens * weight_VD.shape[1] * weight_VD.dtype.itemsize


def _head_bytes(model: TransformerDecoder, tokens: int) -> int:
    """Gradients that the loss hands back: of hidden states and of a trained output projection."""
    weight_VD = head_of(model).weight_VD
    return (weight_VD.nbytes if weight_VD.requires_grad else 0) + 2 * _rows_bytes(model, tokens)


def _temporaries(trained: Sequence[nn.Parameter], device: torch.device) -> int:
    """What an optimizer makes on the way: of all parameters at once on a GPU, else of one."""
    sizes = [p.nbytes for p in trained]
    return sum(sizes) if device.type == "cuda" else 2 * max(sizes)


def _bytes_per_logit(loss: nn.Module, dtype: torch.dtype, teacher: bool) -> float:
    """Bytes that the loss and its backward pass keep alive per supervised token and token id."""
    n, v = _PROBE_TOKENS, _PROBE_VOCAB
    with torch.device("cpu"):
        student = HiddenRows(_leaf(n, dtype), Head(_leaf(v, dtype)))
        other = HiddenRows(_leaf(n, dtype).detach(), Head(_leaf(v, dtype).detach()))
        kinds_N = torch.full((n,), int(next(iter(loss.spec.by_kind))))
        targets_N = torch.zeros(n, dtype=torch.int64)
        counts = loss.spec.count(kinds_N)
    with LiveBytes() as live:
        out = loss.from_hidden(
            student, other if teacher else None, targets_N, kinds_N, counts=counts
        )
        out.loss.backward()
    return live.peak / (n * v)


def _leaf(rows: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(rows, 4, dtype=dtype, requires_grad=True)


def gigabytes(size: float) -> str:
    """``size`` bytes for people, in units of 1e9."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def memory_lines(found: MemoryEstimate, available: int | None) -> list[str]:
    """For people: the estimate against what there is, and a warning if it will not fit."""
    line = f"memory: about {gigabytes(found.total)} estimated"
    if available is None:
        return [line]
    lines = [f"{line}, {gigabytes(available)} available"]
    if found.total > available:
        lines.append("warning: this will probably not fit; `sad doctor` says what would help")
    return lines
