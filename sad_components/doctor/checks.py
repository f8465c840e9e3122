"""The checks of ``sad doctor``, in the order in which a mistake is cheapest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torchtune.modules import TransformerDecoder

from sad_components.data import SpanTokenizer, dataset_type
from sad_components.data.dataset import RowDataset
from sad_components.doctor.config_file import ConfigFile
from sad_components.doctor.run import DataFacts, check_run
from sad_components.export.manifest import read_manifest
from sad_components.export.requirements import EXECUTORCH, INSTALL, executorch_problems
from sad_components.models.hidden import num_parameters, vocab_size_of
from sad_components.models.lora import adapters_of, trained_parameters
from sad_components.training.config import build, call, check_keys, is_null, load_recipe
from sad_components.training.meta_models import folder_of, on_meta
from sad_components.training.precision import resolve_device, resolve_dtype
from sad_components.training.preflight import coverage_warnings
from sad_components.training.sharding import Sharding
from sad_components.training.switches import Switches
from sad_components.training.teacher_precision import teacher_on_meta
from sad_components.training.vocabulary import (
    check_tokenizers,
    other_templates,
    shared_vocab_size,
)

_MODELS = ("student", "teacher", "model")


@dataclass
class Check:
    """One finding.

    Args:
        name: what was looked at.
        mark: ``ok``, ``warn`` or ``fail``.
        lines: what was found.
        figures: the same as numbers, for ``--json``.
    """

    name: str
    mark: str
    lines: list[str]
    figures: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


class Doctor:
    """Goes through a config; each check says what it found, and later ones use it.

    Args:
        file: the config.
        memory: bytes per process of the machine to judge for; None: this one.
        processes: that the run will have.
    """

    def __init__(self, file: ConfigFile, memory: int | None = None, processes: int = 1) -> None:
        self.processes = processes
        self.file, self.cfg, self.memory = file, file.cfg, memory
        self.models: dict[str, TransformerDecoder | None] = {}
        self.tokenizer: Any = None
        self.data: DataFacts | None = None
        self.device = torch.device(self.cfg.get("device") or "cpu")
        self.dtype = torch.float32

    def checks(self) -> list[Check]:
        """All findings. A check that cannot be done is a warning or a failure itself."""
        found = [self._guarded("keys", self._keys)]
        if found[0].mark == "fail":
            return found
        found.append(self._guarded("device", self._device))
        for where, node in _model_nodes(self.cfg):
            found.append(self._guarded(where, lambda w=where, n=node: self._model(w, n)))
        if not is_null(self.cfg.get("tokenizer")):
            found.append(self._guarded("tokenizer", self._tokenizer))
        if _needs_executorch(self.cfg):
            found.append(self._guarded("executorch", self._executorch))
        if self.models.get("student") is not None:
            found.append(self._guarded("vocabulary", self._vocabulary))
        if not is_null(self.cfg.get("dataset")):
            found.append(self._guarded("data", self._data))
        if self.file.recipe == "structured_kd" and self.models.get("student") is not None:
            found += [Check(*result) for result in self._run()]
        return found

    def _guarded(self, name: str, check: Callable[[], Check]) -> Check:
        try:
            return check()
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            return Check(name, "fail", [" ".join(str(error).split())])

    def _keys(self) -> Check:
        recipe = load_recipe(self.file.recipe)
        check_keys(self.cfg, recipe.KEYS, required=recipe.REQUIRED)
        OmegaConf.to_container(self.cfg, resolve=True)
        return Check("keys", "ok", [f"all of recipe {self.file.recipe}"])

    def _device(self) -> Check:
        name = self.cfg.get("dtype") or "auto"
        try:
            device = resolve_device(str(self.device))
        except ValueError as error:
            self.dtype = torch.bfloat16 if name == "auto" else resolve_dtype(name, self.device)
            mark = "fail" if self.memory is None else "warn"
            hint = "; --memory GB judges for a machine that has it" if mark == "fail" else ""
            return Check("device", mark, [f"{error}{hint}"])
        self.dtype = resolve_dtype(name, device)
        Switches.read(self.cfg, device, self.dtype)
        Sharding.read(self.cfg, self.processes, device)
        return Check("device", "ok", [f"{device}, {str(self.dtype).removeprefix('torch.')}"])

    def _model(self, where: str, node: DictConfig) -> Check:
        folder = folder_of(node)
        missing = folder is not None and not folder.exists()
        remedy = f"{folder} is not there: {self.file.download_of(folder)}" if missing else ""
        if missing and node.get("builder") is None:
            return Check(where, "fail", [remedy])
        if where == "teacher":
            model = teacher_on_meta(node, self.cfg.get("teacher_precision"), self.dtype)
        else:
            model = on_meta(node, where, self.dtype)
        self.models[where] = model
        if model is None:
            return Check(where, "ok", [f"no live model ({node.get('_component_')})"])
        layers = len(model.layers)
        size = f"{num_parameters(model):,} parameters, {layers} layers, {self._context(model)}"
        figures = {"parameters": num_parameters(model), "layers": layers}
        if adapters_of(model):
            figures["trained"] = sum(p.numel() for p in trained_parameters(model).values())
            size += f", {figures['trained']:,} trained (adapters)"
        lines = [size, remedy] if missing else [size]
        return Check(where, "fail" if missing else "ok", lines, figures)

    def _context(self, model: TransformerDecoder) -> str:
        wanted = (self.cfg.get("transform") or {}).get("max_seq_len")
        if wanted is not None and wanted > model.max_seq_len:
            raise ValueError(
                f"the model reads {model.max_seq_len} tokens, but transform.max_seq_len is "
                f"{wanted}: lower it"
            )
        return f"context {model.max_seq_len}"

    def _tokenizer(self) -> Check:
        path = str(self.cfg.tokenizer.get("path") or "")
        if path and not path.startswith("shipped:") and not Path(path).exists():
            return Check(
                "tokenizer", "fail", [f"{path} is not there: {self.file.download_of(path)}"]
            )
        self.tokenizer = build(self.cfg.tokenizer, "tokenizer")
        has_template = bool(getattr(self.tokenizer, "chat_template", None))
        style = (self.cfg.get("transform") or {}).get("style", "chat")
        lines = [f"{self.tokenizer.vocab_size:,} ids, {style} style"]
        if style == "chat" and not has_template:
            lines.append("no chat template: turns are written as ChatML (transform.style: plain)")
            return Check("tokenizer", "warn", lines)
        others = other_templates(self.tokenizer, self._model_folders()) if style == "chat" else []
        return Check("tokenizer", "warn" if others else "ok", [*lines, *others])

    def _executorch(self) -> Check:
        problems = executorch_problems()
        if problems:
            return Check("executorch", "fail", [*problems, f"set it up with `{INSTALL}`"])
        return Check("executorch", "ok", [f"{EXECUTORCH} beside torchao"])

    def _vocabulary(self) -> Check:
        student, teacher = self.models["student"], self.models.get("teacher")
        sizes = [vocab_size_of(m) for m in (student, teacher) if m is not None]
        known = min(sizes) if self.tokenizer is None else self.tokenizer.vocab_size
        shared = shared_vocab_size(sizes[0], None if teacher is None else sizes[1], known)
        lines = [f"{shared:,} ids shared"]
        if len(set(sizes)) > 1:
            lines.append(f"embeddings are padded differently ({sizes[0]:,}, {sizes[1]:,})")
        if self.tokenizer is not None:
            check_tokenizers(self.tokenizer, self._model_folders())
        return Check("vocabulary", "ok", lines, {"shared": shared})

    def _model_folders(self) -> list[Path | None]:
        return [folder_of(self.cfg.get(name)) for name in ("student", "teacher")]

    def _data(self) -> Check:
        if self.tokenizer is None:
            return Check("data", "warn", ["not read: there is no tokenizer to read it with"])
        transform = call(SpanTokenizer, self.cfg.get("transform"), "transform", self.tokenizer)
        parts = [self._rows("dataset", transform)]
        if not is_null(self.cfg.get("heldout")):
            parts.append(self._rows("heldout", transform))
        lines = [line for part in parts for line in part.report.lines()]
        spec = build(self.cfg.loss, "loss").spec if self.cfg.get("loss") is not None else None
        if spec is None:
            return Check("data", "ok", lines)
        shares = [_supervised(part, spec) for part in parts]
        heldout = sum(int(part.lengths.sum() * share) for part, share in zip(parts[1:], shares[1:]))
        self.data = DataFacts(parts[0], shares[0], heldout)
        tokens = int(parts[0].lengths.sum())
        lines.append(f"supervised: {shares[0]:.1%} of {tokens:,} tokens")
        cut = parts[0].report.to_dict()["truncated"]
        warnings = coverage_warnings(shares[0], cut, len(parts[0]))
        lines += warnings
        mark = "warn" if warnings else "ok"
        figures = {"rows": len(parts[0]), "tokens": tokens, "supervised": shares[0], "cut": cut}
        return Check("data", mark, lines, figures)

    def _rows(self, where: str, transform: SpanTokenizer) -> RowDataset:
        node = self.cfg[where]
        return call(dataset_type(node), node, where, transform=transform)

    def _run(self) -> Iterator[tuple[Any, ...]]:
        try:
            yield from check_run(
                self.cfg,
                self.models["student"],
                self.models.get("teacher"),
                self.data,
                self.device,
                self.memory,
                self.processes,
            )
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            yield "memory", "fail", [" ".join(str(error).split())]


def _model_nodes(cfg: DictConfig, where: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Nodes that name a model, with their place in the config."""
    for key, value in cfg.items():
        if not OmegaConf.is_dict(value) or is_null(value):
            continue
        place = f"{where}{key}"
        policy = "model" in value  # a policy may be called student
        if key in _MODELS and "_component_" in value and not policy:
            yield place, value
        else:
            yield from _model_nodes(value, f"{place}.")


def _needs_executorch(cfg: Any) -> bool:
    """Whether a config makes a .pte, or lets an exported student play."""
    if not OmegaConf.is_dict(cfg):
        return False
    made = cfg.get("kind") == "executorch"
    plays = str(cfg.get("_component_")).endswith(".exported_policy") and _is_program(cfg)
    return made or plays or any(_needs_executorch(value) for value in cfg.values())


def _is_program(policy: DictConfig) -> bool:
    """Whether an exported policy is, or will be, a .pte; what cannot be read is told of later."""
    try:
        return read_manifest(policy.get("path"), verify=False).kind == "executorch"
    except (ValueError, OSError, TypeError):
        return True


def _supervised(data: RowDataset, spec: Any) -> float:
    """Share of the tokens that the loss reads."""
    counts = np.zeros(2)
    for row in data.rows:
        chosen = spec.supervised(
            torch.from_numpy(row.span_ids.astype(np.int64)), torch.from_numpy(row.branch)
        )
        counts += int(chosen.sum()), len(row)
    return float(counts[0] / max(counts[1], 1))
