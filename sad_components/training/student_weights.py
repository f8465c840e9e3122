"""The student's weights: which are trained, what a checkpoint holds, what a finished run leaves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torchtune import training
from torchtune.modules import TransformerDecoder
from torchtune.modules.peft import set_trainable_params

from sad_components.models import from_pretrained, save_student
from sad_components.models.families import family_of_model
from sad_components.models.hidden import num_parameters
from sad_components.models.lora import (
    adapters_of,
    base_state_dict,
    merged_state_dict,
    trained_parameters,
)
from sad_components.models.peft_format import peft_adapter, save_peft_adapter
from sad_components.models.pretrained import student_writer
from sad_components.training.activations import unwrapped_layers
from sad_components.training.checkpoints import copied
from sad_components.training.config import ConfigError
from sad_components.training.run_folder import RunFolder
from sad_components.training.sharding import Sharding, copy_into_, part_again

#: Of a checkpoint: the adapters' parameters under torchtune's names.
ADAPTERS_FILE = "adapters.safetensors"


class StudentWeights:
    """Of a student all parameters are trained and saved; of one with adapters, these alone.

    Args:
        student: a decoder; its other parameters lose ``requires_grad``, in place.
        tokenizer_dir: folder of the tokenizer, which is saved along.

    Raises:
        ValueError: a student that could not be saved in the end: no family has its structure, or
            its adapters have no form that PEFT knows.
    """

    def __init__(self, student: TransformerDecoder, tokenizer_dir: str | None) -> None:
        family_of_model(student)
        self.student, self._tokenizer_dir = student, tokenizer_dir
        self.settings = peft_adapter(student).config if adapters_of(student) else None
        trained = trained_parameters(student)
        set_trainable_params(student, trained)
        self.trained: list[nn.Parameter] = list(trained.values())
        self._whole: TransformerDecoder | None = None

    def shard(self, sharding: Sharding) -> None:
        """Spreads the student over ranks, if ``sharding`` is active; ``trained`` are then parts.

        Args:
            sharding: of the run; comes after everything that changes the student's modules.
        """
        if sharding.active:
            self._whole = _skeleton(self.student)
            sharding.shard_(self.student)
            self.trained = list(trained_parameters(self.student).values())

    @contextmanager
    def gathered(self, main: bool) -> Iterator[None]:
        """Inside the block the main rank may call :meth:`snapshot` and :meth:`write_finished`.

        Every rank enters it; the main one holds a sharded student whole in the CPU's memory.

        Args:
            main: whether this is that rank.
        """
        if self._whole is None:
            with unwrapped_layers(self.student):
                yield
            return
        part_again(self.student)
        device = self.trained[0].device
        state = training.gather_cpu_state_dict(self.student, main, device)
        if main:
            self._whole.load_state_dict(state, assign=True)
        try:
            yield
        finally:
            self._whole.to("meta")

    @property
    def _readable(self) -> TransformerDecoder:
        """The student in a form whose weights and modules can be read."""
        return self.student if self._whole is None else self._whole

    @property
    def num_trained(self) -> int:
        """Numbers that training changes."""
        return sum(parameter.numel() for parameter in self.trained)

    def describe(self) -> list[str]:
        """For people: a line on adapters, if there are any."""
        if self.settings is None:
            return []
        method = "DoRA" if self.settings["use_dora"] else "LoRA"
        targets = ", ".join(self.settings["target_modules"])
        share = f"{self.num_trained:,} of {num_parameters(self.student):,} parameters"
        return [f"{method} adapters on {targets}: {share} are trained"]

    def snapshot(self, *, copy: bool) -> Callable[[Path], Any]:
        """What a checkpoint needs: the student in Hugging Face format, or its adapters.

        To be called where :meth:`gathered`.

        Args:
            copy: into the CPU's memory, for weights that will change while they are written.

        Returns:
            Writes it into the folder that it is given; calls no method of the student.
        """
        copy = copy and self._whole is None  # what was gathered is a copy
        if self.settings is None:
            weights = merged_state_dict(self._readable)
            weights = copied(weights) if copy else weights
            write = student_writer(self._readable, self._tokenizer_dir, weights)
            return lambda folder: write(folder / "student")
        trained = trained_parameters(self._readable)
        adapters = copied(trained) if copy else {k: p.detach().cpu() for k, p in trained.items()}
        return lambda folder: save_file(adapters, folder / ADAPTERS_FILE)

    def load_(self, folder: Path) -> None:
        """Puts a checkpoint's weights into the student, whose base is built as it was then.

        Every rank calls it and reads the checkpoint.

        Raises:
            ValueError: the folder does not hold them.
        """
        if self.settings is None:
            like = self.trained[0]
            device = like.device if self._whole is None else torch.device("cpu")
            saved = from_pretrained(folder / "student", dtype=like.dtype, device=device)
            whole = saved.state_dict()
            for name, own in self.student.state_dict().items():
                copy_into_(own, whole[name])
        else:
            with unwrapped_layers(self.student):
                _load_adapters_(trained_parameters(self.student), folder)

    def write_finished(self, run: RunFolder, base: Path | None) -> list[str]:
        """Writes the student, adapters merged, and its adapter as PEFT loads it.

        To be called where :meth:`gathered`.

        Args:
            run: where to.
            base: folder of the model that adapters belong on; None where it lies nowhere (cut
                out of another, or from scratch): then it is written, too.

        Returns:
            Lines that say where.
        """
        lines = [f"student: {self._save_merged(run.student)}"]
        if self.settings is None:
            return lines
        if base is None:
            weights = base_state_dict(self._readable)
            base = save_student(self._readable, run.base, self._tokenizer_dir, weights)
            lines.append(f"base of the adapter: {base}")
        return [*lines, f"adapter: {save_peft_adapter(self._readable, run.adapter, base)}"]

    def _save_merged(self, path: Path) -> Path:
        weights = merged_state_dict(self._readable)
        return save_student(self._readable, path, self._tokenizer_dir, weights)


def _skeleton(student: TransformerDecoder) -> TransformerDecoder:
    """The student's modules without activation checkpointing, parameters on the meta device."""
    with unwrapped_layers(student):
        empty = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
            for p in student.parameters()
        }
        return copy.deepcopy(student, empty)


def _load_adapters_(own: dict[str, nn.Parameter], folder: Path) -> None:
    try:
        saved = load_file(folder / ADAPTERS_FILE)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"resume: true needs the adapters of a checkpoint, but {folder} has none that can be "
            f"read ({error}); use the run's own student"
        ) from error
    shapes = [{k: tuple(t.shape) for k, t in tensors.items()} for tensors in (saved, own)]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        there, here = shapes[0].get(name, "missing"), shapes[1].get(name, "missing")
        if there != here:
            raise ConfigError(
                f"resume: true needs the run's own adapters, but {name} is {there} in {folder} "
                f"and {here} in this config; use the run's lora_.. settings"
            )
    for name, parameter in own.items():
        copy_into_(parameter, saved[name])
