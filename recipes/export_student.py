"""A student is quantised, lowered, compared with the eager one, and written where it will live.

Run: ``tune run recipes/export_student.py --config tiny/export_student``, or ``sad export RUN``
"""

from __future__ import annotations

import gc
import itertools
import json
import shutil
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torchtune import config

from sad_components.data import SpanTokenizer
from sad_components.data.shipped import resolve_source
from sad_components.data.tokenizers import HFTokenizer
from sad_components.evaluation.export_comparison import (
    Probe,
    Reference,
    comparison_table,
    eager_row,
    exported_row,
    weights_size,
)
from sad_components.evaluation.prompts import PromptBuilder
from sad_components.export import load_exported
from sad_components.export.model_card import export_card, write_card
from sad_components.export.requirements import INSTALL, executorch_problems
from sad_components.export.variants import Variant, exported_variant, prepare
from sad_components.export.writer import Facts, write_executorch, write_gguf_export
from sad_components.models import from_pretrained, save_student
from sad_components.models.checkpoint import TOKENIZER_FILES, load_hf_config, replace_folder
from sad_components.models.quantized import (
    SCHEMES,
    Scheme,
    load_quantized,
    quantize_folder,
    quantized_scheme,
)
from sad_components.models.torchao_folders import (
    TORCHAO_SCHEMES,
    quantize_torchao_,
    save_torchao_folder,
)
from sad_components.training.config import ConfigError, build, call, check_counts, check_keys
from sad_components.training.durable import write_atomically
from sad_components.training.errors import explained
from sad_components.training.report import versions
from sad_components.trajectory import Trajectory, iter_json_lines

SUPPORTS_DISTRIBUTED = False

KEYS = ("run", "student", "reference", "tokenizer", "transform", "format", "max_seq_len")
KEYS += ("prefill_tokens", "threads", "exports", "compare", "output_dir", "overwrite")
REQUIRED = ("exports", "output_dir")
_KINDS = ("hf", "executorch", "gguf")
_EXPORT_KEYS = {
    "hf": ("kind", "scheme", "group_size", "student"),
    "executorch": ("kind", "scheme", "group_size", "head", "embedding", "student"),
    "gguf": ("kind", "dtype", "student"),
}
_COMPARE_KEYS = ("source", "rows", "prompts", "new_tokens", "prefill", "max_error")


class ExportStudentRecipe:
    """Writes every export into a folder of its own, runs it, and compares it with eager fp32.

    Args:
        cfg: see ``configs/tiny/export_student.yaml``, which explains every field.

    Raises:
        ConfigError: a key that nobody reads, no student, or an export of an unknown kind.
    """

    def __init__(self, cfg: DictConfig) -> None:
        check_keys(cfg, KEYS, required=REQUIRED)
        check_counts(cfg, ("prefill_tokens",), 2)
        self.cfg = cfg
        if not cfg.exports:
            raise ConfigError("exports names at least one export; got none")
        for name, node in cfg.exports.items():
            if Path(name).name != name or name.startswith("."):
                raise ConfigError(
                    f"exports: a name becomes a folder in output_dir; got {name!r}: take one "
                    "without slashes and without a dot in front"
                )
            kind = node.get("kind") if OmegaConf.is_dict(node) else None
            if kind not in _KINDS:
                raise ConfigError(
                    f"exports.{name}.kind is one of {', '.join(_KINDS)}; got {kind!r}"
                )
            check_keys(node, _EXPORT_KEYS[kind], f"exports.{name}")
        compare = cfg.get("compare") or OmegaConf.create({})
        check_keys(compare, _COMPARE_KEYS, "compare")
        check_counts(compare, ("rows", "prompts", "new_tokens", "prefill"))
        self.compare = compare
        self.run = self._run_config()
        self.output_dir = Path(cfg.output_dir)
        self.rows: dict[str, dict[str, Any]] = {}

    def setup(self) -> None:
        """Finds the student, its tokenizer and what to compare on, and runs the eager student.

        Raises:
            ConfigError: exports that exist and would be lost, or nothing to compare on.
        """
        if self.cfg.get("threads"):
            torch.set_num_threads(self.cfg.threads)
        target = self.output_dir / "export.json"
        if target.exists() and not self.cfg.get("overwrite", False):
            raise ConfigError(
                f"{target} exists and would be lost: choose another output_dir, or set "
                "overwrite=True"
            )
        self.student = self._student()
        for name, node in self.cfg.exports.items():
            self._check_target(name, node)
        problems = executorch_problems()
        if problems and any(node.kind == "executorch" for node in self.cfg.exports.values()):
            raise ConfigError(
                f"exports of kind executorch need ExecuTorch: {'; '.join(problems)}. Set it up "
                f"with `{INSTALL}` (docs/export.md)"
            )
        self.transform = self._transform()
        trajectories = self._trajectories()
        self.format = self.cfg.get("format") or trajectories[0].format or "react"
        self.facts = self._facts(self.student, trajectories[0])
        self.probe = self._probe(trajectories)
        plain = self._reference_folder()
        model = from_pretrained(plain, dtype=torch.float32, device="cpu", dropout=0.0).eval()
        self.max_seq_len: int = self.cfg.get("max_seq_len") or model.max_seq_len
        if not 1 <= self.max_seq_len <= model.max_seq_len:
            raise ConfigError(
                f"max_seq_len is 1 to {model.max_seq_len}, what the student reads; got "
                f"{self.max_seq_len}: lower it, or leave it out"
            )
        self.probe = self.probe.cut(self.max_seq_len)
        self.reference = Reference.of(model, self.probe)
        self.rows["eager fp32"] = eager_row(model, self.probe, None, weights_size(plain))
        self.max_error: float = self.compare.get("max_error", 2e-2)

    def export(self) -> None:
        """Makes, runs and compares every export; the table and ``export.json``.

        Raises:
            ValueError: an export whose logits are not those of its own eager model. It is not kept.
        """
        for name, node in self.cfg.exports.items():
            print(f"exporting {name} ..", flush=True)
            maker = {"hf": self._hf, "gguf": self._gguf}.get(node.kind, self._executorch)
            self.rows[name] = {"kind": node.kind, **maker(name, node)}
            student, folder = node.get("student") or self.student, self.output_dir / name
            write_card(folder, export_card(student, name, self.rows[name], folder))
            gc.collect()
            self._write()
        print(comparison_table(self.rows))
        print(f"exports -> {self.output_dir}, figures -> {self.output_dir / 'export.json'}")

    def _hf(self, name: str, node: DictConfig) -> dict[str, Any]:
        """A folder in Hugging Face format, quantised or not: written, reloaded, run."""
        scheme, student = node.get("scheme"), Path(node.get("student") or self.student)
        known = (*SCHEMES, *TORCHAO_SCHEMES)
        if scheme is not None and scheme not in known:
            raise ConfigError(f"exports.{name}.scheme is null or {', '.join(known)}; got {scheme}")
        own = quantized_scheme(load_hf_config(student))
        if own is not None and scheme is not None:
            raise ConfigError(f"exports.{name}: {student} is quantised already, by {own}")
        with self._replacing(name) as folder:
            if own is not None:
                shutil.copytree(student, folder, dirs_exist_ok=True)
            elif scheme is None:
                save_student(from_pretrained(student, torch.float32), folder, self._tokenizer_dir())
            elif scheme in SCHEMES:
                rounding = Scheme(scheme, node.get("group_size", 32))
                quantize_folder(student, folder, rounding, tokenizer_dir=self._tokenizer_dir())
            else:
                model = from_pretrained(student, torch.float32, device="cpu")
                described = {**load_hf_config(student), "torch_dtype": "float32"}
                described.pop("dtype", None)  # transformers 5's name for the same
                quantize_torchao_(model, scheme)
                save_torchao_folder(model, scheme, described, folder, self._tokenizer_dir())
                del model
            quantised = scheme is not None or own is not None
            read = load_quantized if quantised else from_pretrained
            model = read(folder, device="cpu").eval()
            size = weights_size(folder)
            try:
                return eager_row(model, self.probe, self.reference, size)
            except (RuntimeError, NotImplementedError, AssertionError) as error:
                reason = " ".join(str(error).split())[:160]
                return {"runtime": "eager", "bytes": size, "not_run": reason}

    def _executorch(self, name: str, node: DictConfig) -> dict[str, Any]:
        """A .pte with tokenizer and manifest: written, run in the runtime, compared."""
        options = {k: v for k, v in node.items() if k not in ("kind", "student")}
        variant = call(Variant, OmegaConf.create(options), f"exports.{name}")
        student = Path(node.get("student") or self.student)
        facts = Facts(student, self.transform, self.format, self.facts.stop_tokens)
        with self._replacing(name) as folder:
            write_executorch(
                folder,
                facts,
                variant,
                name,
                self.max_seq_len,
                self.cfg.get("prefill_tokens", 128),
            )
            own = prepare(student, exported_variant(student, variant))
            exported = load_exported(folder)
            row = exported_row(exported, own, self.probe, self.reference)
            exported.close()
            self._check_error(name, row["error_own"])
            return row

    def _gguf(self, name: str, node: DictConfig) -> dict[str, Any]:
        """A GGUF with tokenizer and manifest: written, run where llama.cpp is installed."""
        student = Path(node.get("student") or self.student)
        facts = Facts(student, self.transform, self.format, self.facts.stop_tokens)
        with self._replacing(name) as folder:
            manifest = write_gguf_export(
                folder, facts, node.get("dtype", "fp16"), name, self.max_seq_len
            )
            size = manifest.files[manifest.model_file]["bytes"]
            try:
                exported = load_exported(folder)
            except ImportError as error:
                return {"runtime": "gguf", "bytes": size, "not_run": str(error)}
            row = exported_row(exported, None, self.probe, self.reference)
            exported.close()
            if node.get("dtype") != "q8_0":  # which rounds, and has no eager model of its own
                self._check_error(name, row["error"])
            return row

    def _check_error(self, name: str, error: float) -> None:
        if not error <= self.max_error:
            raise ValueError(
                f"exports.{name}: the export gives other logits than the eager model that it was "
                f"made of: relative error {error:.2e}, at most {self.max_error:.0e} is allowed "
                "(compare.max_error). It is not kept"
            )

    def _replacing(self, name: str) -> AbstractContextManager[Path]:
        """A folder that takes its place only when everything in the block went well."""
        return replace_folder(self.output_dir / name)

    def _check_target(self, name: str, node: DictConfig) -> None:
        """Raises ``ConfigError`` where an export would replace what is no export of this place."""
        target = (self.output_dir / name).resolve()
        given = [self.student, node.get("student"), self.cfg.get("reference"), self.cfg.get("run")]
        read = {Path(folder).resolve() for folder in given if folder is not None}
        if any(folder.is_relative_to(target) for folder in read):
            raise ConfigError(
                f"exports.{name} would replace {target}, which this run reads: choose another "
                "output_dir or name"
            )
        if target.exists() and not self.cfg.get("overwrite", False):
            raise ConfigError(
                f"{target} exists and would be lost: choose another output_dir, or set "
                "overwrite=True"
            )

    def _write(self) -> None:
        found = {
            "student": str(self.student),
            "exports": self.rows,
            "max_seq_len": self.max_seq_len,
            "config": OmegaConf.to_container(self.cfg, resolve=True),
            "versions": versions(),
        }
        write_atomically(self.output_dir / "export.json", json.dumps(found, indent=2) + "\n")

    def _run_config(self) -> DictConfig:
        """The config of the run that made the student; empty without one."""
        run = self.cfg.get("run")
        if run is None:
            return OmegaConf.create({})
        file = Path(run) / "config.yaml"
        if not file.is_file():
            raise ConfigError(
                f"run names the folder of a training run; {file} is not there: give student, "
                "tokenizer and transform instead"
            )
        return OmegaConf.load(file)

    def _student(self) -> Path:
        given = self.cfg.get("student")
        if given is None and self.cfg.get("run") is None:
            raise ConfigError("give run (the folder of a training run) or student (its student)")
        return Path(given) if given is not None else Path(self.cfg.run) / "student"

    def _reference_folder(self) -> Path:
        """The student that is not quantised: errors are measured against it."""
        given = self.cfg.get("reference")
        folder = Path(given) if given is not None else self.student
        if quantized_scheme(load_hf_config(folder)) is not None:
            raise ConfigError(
                f"{folder} is quantised: name the student that it was made of as reference"
            )
        return folder

    def _transform(self) -> SpanTokenizer:
        node = self.cfg.get("tokenizer") or self.run.get("tokenizer")
        tokenizer = build(node, "tokenizer") or HFTokenizer(str(self.student))
        options = self.cfg.get("transform") or self.run.get("transform")
        return call(SpanTokenizer, options, "transform", tokenizer)

    def _tokenizer_dir(self) -> Path | None:
        folder = self.facts.tokenizer.path
        return folder if any((folder / n).is_file() for n in TOKENIZER_FILES) else None

    def _trajectories(self) -> list[Trajectory]:
        source = self.compare.get("source")
        if source is None:
            source = (self.run.get("heldout") or {}).get("source")
        if source is None:
            raise ConfigError(
                "compare.source names transcripts that exports are compared on (JSONL, or "
                "shipped:household/heldout); the run has no heldout.source"
            )
        wanted = max(self.compare.get("rows", 4), self.compare.get("prompts", 2))
        lines = itertools.islice(iter_json_lines(resolve_source(source)), wanted)
        found = [self.transform.trajectory(record) for _, record in lines]
        if not found:
            raise ConfigError(f"compare.source: {source} holds no transcript")
        return found

    def _facts(self, student: Path, example: Trajectory) -> Facts:
        tokenizer = self.transform.tokenizer
        prompt = PromptBuilder(self.transform, self.format).build(example.messages[:1])
        stops = {tokenizer.special.get(prompt.stop), tokenizer.eos_id} - {None}
        return Facts(student, self.transform, self.format, tuple(sorted(stops)))

    def _probe(self, trajectories: list[Trajectory]) -> Probe:
        rows = [
            row.tokens.tolist()
            for trajectory in trajectories[: self.compare.get("rows", 4)]
            for row in self.transform.rows(trajectory)
        ]
        builder = PromptBuilder(self.transform, self.format)
        prompts = [
            builder.build(t.messages[:1]).token_ids
            for t in trajectories[: self.compare.get("prompts", 2)]
        ]
        wanted = self.compare.get("prefill", 256)
        longest = (max(rows, key=len) * (1 + wanted))[:wanted]
        stops = list(self.facts.stop_tokens)
        return Probe(rows, prompts, self.compare.get("new_tokens", 48), stops, longest)


@config.parse
def recipe_main(cfg: DictConfig) -> None:
    """Entry point: sets up and exports."""
    with explained("export_student"):
        recipe = ExportStudentRecipe(cfg)
        recipe.setup()
        recipe.export()


if __name__ == "__main__":
    sys.exit(recipe_main())
