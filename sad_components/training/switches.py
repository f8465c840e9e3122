"""The recipe's switches for precision and memory: read, refused where they cannot work, applied."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn
from torchao.quantization import quantize_
from torchao.quantization.qat import QATConfig
from torchtune import training

from sad_components.models.quantized import SCHEMES, Scheme, quantize_folder
from sad_components.training.activations import checkpoint_layers_
from sad_components.training.config import ConfigError
from sad_components.training.fp8 import RECIPES, use_fp8_

#: Keys of the config that are read here; ``teacher_precision`` is read by teacher_precision.py.
KEYS = ("fp8", "qat", "qat_group_size", "activation_checkpointing", "activation_offloading")


@dataclass(frozen=True)
class Switches:
    """What is done to the student before it is trained.

    Args:
        fp8: ``tensorwise``, ``rowwise`` or None.
        qat: the scheme that training gets the student used to, or None.
        checkpointing: whether layers are run anew in the backward pass instead of kept.
        offloading: whether what is kept lies in the CPU's memory meanwhile.
        compiled: whether the student's layers will be compiled.
        device: of the run.
    """

    fp8: str | None
    qat: Scheme | None
    checkpointing: bool
    offloading: bool
    compiled: bool
    device: torch.device

    @classmethod
    def read(cls, cfg: DictConfig, device: torch.device, dtype: torch.dtype) -> Switches:
        """The switches of a config.

        Raises:
            ConfigError: a value that no switch has, or switches that cannot work together or on
                this device; it says why, and what would do.
        """
        fp8, qat, size = cfg.get("fp8"), cfg.get("qat"), cfg.get("qat_group_size")
        for name, value, known in (("fp8", fp8, RECIPES), ("qat", qat, SCHEMES)):
            if value is not None and value not in known:
                raise ConfigError(f"{name} is null, {' or '.join(known)}; got {value!r}")
            if value is not None and dtype not in (torch.float32, torch.bfloat16):
                raise ConfigError(
                    f"{name}: {value} rounds fp32 or bf16 weights; the run's dtype is "
                    f"{str(dtype).removeprefix('torch.')}: set dtype: fp32 or bf16"
                )
        if fp8 is not None and qat is not None:
            raise ConfigError(
                f"fp8: {fp8} and qat: {qat} both replace the student's linear layers, and its "
                "weights would be rounded twice: set one of them to null"
            )
        if size is not None and qat is None:
            raise ConfigError("qat_group_size is of qat, which is null: set qat: 8da4w, or int4")
        flags = {name: cfg.get(name, False) for name in KEYS if name.startswith("activation_")}
        wrong = [name for name, value in flags.items() if not isinstance(value, bool)]
        if wrong:
            raise ConfigError(f"{wrong[0]} is true or false; got {flags[wrong[0]]!r}")
        if flags["activation_offloading"] and device.type != "cuda":
            raise ConfigError(
                "activation_offloading moves activations from a GPU into the CPU's memory, but "
                f"the device is {device}: set activation_offloading: false "
                "(activation_checkpointing: true saves memory here, too)"
            )
        scheme = None if qat is None else _scheme(qat, size)
        return cls(
            fp8=fp8,
            qat=scheme,
            checkpointing=flags["activation_checkpointing"],
            offloading=flags["activation_offloading"],
            compiled=cfg.get("compile", False),
            device=device,
        )

    def apply_(self, student: nn.Module) -> list[str]:
        """Prepares ``student`` in place, before it is compiled; parameters keep their names.

        Returns:
            Lines for people.

        Raises:
            ValueError: a student that a switch is not for, such as one with adapters.
        """
        lines = []
        if self.fp8 is not None:
            lines += use_fp8_(student, self.fp8, self.device)
            if self.device.type == "cuda" and not self.compiled:
                lines.append(
                    "warning: fp8 without compile: true is slower than bf16, since scaling is not "
                    "fused with the products"
                )
        if self.qat is not None:
            lines.append(prepare_qat_(student, self.qat))
        if self.checkpointing:
            checkpoint_layers_(student)
            lines.append("activation checkpointing: every layer runs again in the backward pass")
        if self.offloading:
            lines.append("activation offloading: what layers keep lies in the CPU's memory")
        return lines

    def offload(self, student: nn.Module) -> AbstractContextManager:
        """Goes around every forward pass that is trained; moves nothing unless ``offloading``.

        Make it once: it adds hooks to the student.
        """
        return training.get_act_offloading_ctx_manager(student, self.offloading)

    def write_quantized(self, student_dir: Path, out_dir: Path) -> list[str]:
        """With ``qat``, the quantised version of the student that was saved in ``student_dir``.

        It computes what the student computed in training. Returns lines for people.
        """
        if self.qat is None:
            return []
        quantize_folder(student_dir, out_dir, self.qat, self.device)
        return [f"quantised student ({self.qat.name}): {out_dir}"]


def prepare_qat_(model: nn.Module, scheme: Scheme) -> str:
    """Linear layers of ``model`` round as ``scheme`` will, in place; gradients pass through.

    Args:
        model: a decoder without adapters, in fp32 or bf16.
        scheme: what the student is to become.

    Returns:
        A line for people.

    Raises:
        ValueError: see :meth:`Scheme.check`.
    """
    layers = scheme.check(model)
    config = QATConfig(scheme.torchao_config(), step="prepare")
    quantize_(model, config, filter_fn=lambda _, name: name in layers)
    return (
        f"qat: {len(layers)} linear layers round as {scheme.name} in groups of "
        f"{scheme.group_size}; scores are those of the quantised student"
    )


def _scheme(name: str, size: int | None) -> Scheme:
    try:
        return Scheme(name) if size is None else Scheme(name, size)
    except ValueError as error:
        raise ConfigError(f"qat: {name}, qat_group_size: {size}: {error}") from error
