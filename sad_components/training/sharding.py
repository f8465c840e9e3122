"""Models spread over ranks with FSDP2: a layer is whole only while it computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torchao.dtypes.nf4tensor import NF4Tensor
from torchtune import training
from torchtune.modules import TransformerDecoder

from sad_components.training.config import ConfigError

#: Values of an NF4 weight whose scales share a scale, at most.
_NF4_GROUP = 64 * 256
_FLAGS = {"fsdp_cpu_offload": False, "fsdp_reshard_after_forward": True, "shard_teacher": True}
#: Keys of the config that are read here; torchtune's recipes have the same names.
KEYS = ("data_parallel_shard_dim", "data_parallel_replicate_dim", *_FLAGS)


@dataclass(frozen=True)
class Sharding:
    """Which ranks share a model's parameters, gradients and optimizer state.

    Args:
        shard: ranks that hold a part each; 1: every rank holds the whole.
        replicate: such groups, each with a whole model (HSDP).
        teacher: whether a live teacher is spread, too; else every rank holds it whole.
        cpu_offload: whether parts lie in the CPU's memory, and the optimizer runs there.
        reshard: whether layers are parted again after the forward pass (less memory), or only
            after the backward pass (less communication).
        device: of the run.
    """

    shard: int
    replicate: int
    teacher: bool
    cpu_offload: bool
    reshard: bool
    device: torch.device

    @classmethod
    def read(cls, cfg: DictConfig, world: int, device: torch.device) -> Sharding:
        """The sharding of a config.

        Args:
            cfg: ``data_parallel_shard_dim`` -1 takes what ``data_parallel_replicate_dim`` leaves,
                and the latter, where it is left out, what a given shard_dim leaves.
            world: processes of the run.
            device: of the run.

        Raises:
            ConfigError: sizes whose product is not ``world``, values of another type, or what
                this device cannot do.
        """
        flags = {name: cfg.get(name, default) for name, default in _FLAGS.items()}
        wrong = [name for name, value in flags.items() if not isinstance(value, bool)]
        if wrong:
            raise ConfigError(f"{wrong[0]} is true or false; got {flags[wrong[0]]!r}")
        shard = cfg.get("data_parallel_shard_dim", -1)
        replicate = cfg.get("data_parallel_replicate_dim")
        if replicate is None:
            given = isinstance(shard, int) and shard > 0 and world % shard == 0
            replicate = world // shard if given else 1
        if not (isinstance(replicate, int) and replicate >= 1 and world % replicate == 0):
            raise ConfigError(
                f"data_parallel_replicate_dim divides the number of processes ({world}); got "
                f"{replicate!r}"
            )
        if shard == -1:
            shard = world // replicate
        if not isinstance(shard, int) or shard * replicate != world:
            raise ConfigError(
                "data_parallel_shard_dim (-1: what is left) times data_parallel_replicate_dim is "
                f"the number of processes ({world}); got {shard!r} and {replicate}"
            )
        if flags["fsdp_cpu_offload"] and (device.type == "cpu" or shard == 1):
            why = "the device is cpu" if device.type == "cpu" else "nothing is sharded"
            raise ConfigError(
                f"fsdp_cpu_offload moves parts of a sharded model out of a GPU, but {why}: set "
                "fsdp_cpu_offload: false"
            )
        return cls(
            shard=shard,
            replicate=replicate,
            teacher=flags["shard_teacher"],
            cpu_offload=flags["fsdp_cpu_offload"],
            reshard=flags["fsdp_reshard_after_forward"],
            device=device,
        )

    @property
    def active(self) -> bool:
        """Whether a model's parameters are spread over ranks."""
        return self.shard > 1

    @property
    def ranks(self) -> dict[str, int]:
        """Ranks that student and teacher are spread over, as ``RunShape`` names them."""
        return {"ranks": self.shard, "teacher_ranks": self.shard if self.teacher else 1}

    @property
    def build_device(self) -> torch.device:
        """Where models are built: in the CPU's memory, if they go to the device in parts."""
        return torch.device("cpu") if self.active else self.device

    def teacher_device(self, cfg: DictConfig) -> torch.device:
        """Where the teacher is built.

        Raises:
            ConfigError: a quantised teacher is to be spread.
        """
        precision = cfg.get("teacher_precision")
        if self.active and self.teacher and precision not in (None, "bf16"):
            raise ConfigError(
                f"teacher_precision: {precision} weights are not spread over ranks: set "
                "shard_teacher: false (each rank then holds them whole), or teacher_precision: "
                "bf16"
            )
        return self.build_device if self.teacher else self.device

    def describe(self) -> list[str]:
        """For people: a line, if models are spread."""
        if not self.active:
            return []
        groups = f", {self.replicate} times" if self.replicate > 1 else ""
        return [f"sharding: parameters over {self.shard} ranks{groups} (FSDP2)"]

    def shard_(self, model: TransformerDecoder) -> None:
        """Spreads ``model``, in place, layer by layer; without :attr:`active` it stays.

        Gradients are summed over ranks, not averaged: a step's loss is already divided by the
        token counts of all of them. Embedding, final norm and head stay whole from the forward to
        the end of the backward pass, since the loss reads the head in between. Every rank has to
        call the model equally often.

        Args:
            model: a decoder on :attr:`build_device`, compiled already if it is to be.

        Raises:
            ConfigError: weights that cannot be parted.
        """
        if not self.active:
            return
        self._check_nf4(model)
        training.shard_model(
            model,
            [partial(training.get_shard_conditions, names_to_match=None)],
            cpu_offload=self.cpu_offload,
            reshard_after_forward=self.reshard,
            dp_mesh=self._mesh(),
        )
        model.set_reshard_after_forward(False, recurse=False)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
                # a rank without rows in a micro-batch sends zeros for all
                module.set_reduce_scatter_unused_params(True)

    def shard_teacher_(self, model: TransformerDecoder) -> None:
        """Spreads a live teacher, in place, if it is to be."""
        if self.teacher:
            self.shard_(model)

    def _check_nf4(self, model: nn.Module) -> None:
        weights = [p for p in model.parameters() if isinstance(p, NF4Tensor)]
        if weights and self.replicate > 1:
            raise ConfigError(
                "NF4 weights are spread over one group of ranks only: set "
                "data_parallel_replicate_dim: 1"
            )
        for weight in weights:
            if weight.quantization_factor.numel() % self.shard:
                raise ConfigError(
                    f"NF4 weights are parted between groups of {_NF4_GROUP:,} values; one of "
                    f"{list(weight.shape)} does not part over {self.shard} ranks: use fewer, or "
                    "quantize_base: false"
                )

    def _mesh(self) -> DeviceMesh:
        if self.replicate == 1:
            return init_device_mesh(self.device.type, (self.shard,), mesh_dim_names=("dp_shard",))
        sizes, names = (self.replicate, self.shard), ("dp_replicate", "dp_shard")
        return init_device_mesh(self.device.type, sizes, mesh_dim_names=names)


def gather_head(model: nn.Module) -> None:
    """Makes embedding, final norm and head of a sharded model whole; every rank calls it."""
    if isinstance(model, FSDPModule):
        model.unshard()


def part_again(model: nn.Module) -> None:
    """Frees what a sharded model still holds whole; its parameters are the parts again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def item(scalar: Tensor) -> float:
    """The number in a tensor; of a spread one the whole's, and every rank calls it."""
    return float(scalar.full_tensor() if isinstance(scalar, DTensor) else scalar)


@torch.no_grad()
def copy_into_(own: Tensor, whole: Tensor) -> None:
    """Copies a whole tensor into one that may be spread: each rank takes its part."""
    if isinstance(own, DTensor):
        whole = distribute_tensor(
            whole.to(own.device), own.device_mesh, own.placements, src_data_rank=None
        )
    own.copy_(whole)


def whole_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """``optimizer.state_dict()`` with spread tensors whole, in the CPU's memory.

    Every rank calls it. What comes out is the same for any number of ranks.
    """
    found = optimizer.state_dict()
    return {**found, "state": {i: _whole(values) for i, values in found["state"].items()}}


def load_optimizer_state_(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Undoes :func:`whole_optimizer_state`, for parameters that may be spread otherwise now."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {i: _parted(values, parameters[i]) for i, values in saved["state"].items()}
    optimizer.load_state_dict({**saved, "state": state})


def _whole(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.full_tensor().cpu() if isinstance(v, DTensor) else v for k, v in values.items()}


def _parted(values: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
    """State that has the parameter's shape, spread as the parameter is."""
    if not isinstance(parameter, DTensor):
        return dict(values)
    mesh, placements = parameter.device_mesh, parameter.placements
    like = {k for k, v in values.items() if getattr(v, "shape", None) == parameter.shape}
    return {
        k: distribute_tensor(v.to(parameter.device), mesh, placements, src_data_rank=None)
        if k in like
        else v
        for k, v in values.items()
    }
