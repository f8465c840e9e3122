"""Runs the teacher once over the trajectories and stores what it says about supervised tokens.

Run it:

    tune run recipes/cache_teacher.py --config tiny/cache_teacher
    tune run --nproc_per_node 2 recipes/cache_teacher.py --config my.yaml

Killed or stopped, the same command goes on where it was. Train from the cache with
``teacher: {_component_: sad_components.training.teacher_cache.CachedTeacher, path: ..}`` in a
config of structured_kd. docs/teacher_cache.md says what each mode can give.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torchtune import config, training
from tqdm import tqdm

from sad_components.data import dataset_type
from sad_components.data.transform import SpanTokenizer
from sad_components.models.hidden import head_of, stop_at_hidden, vocab_size_of
from sad_components.spans import SpanKind
from sad_components.training import distributed
from sad_components.training.config import build, call, check_keys, is_null
from sad_components.training.errors import explained
from sad_components.training.meta_models import folder_of
from sad_components.training.precision import resolve_device, resolve_dtype
from sad_components.training.report import versions
from sad_components.training.teacher_cache import (
    CacheWriter,
    HiddenCodec,
    LiveSource,
    SampledCodec,
    make_codec,
    report,
    shards,
    supervision,
)
from sad_components.training.teacher_cache.fingerprint import (
    describe_tokenizer,
    hash_weight_files,
    hash_weights,
)
from sad_components.training.teacher_cache.server import ServerSource, ServerTeacher
from sad_components.training.teachers import LiveTeacher
from sad_components.training.vocabulary import check_tokenizers, shared_vocab_size

KEYS = (
    *("tokenizer", "transform", "dataset", "heldout", "teacher", "student", "cache"),
    *("batch_size", "seed", "device", "dtype", "output_dir", "report_rows"),
)
REQUIRED = ("tokenizer", "dataset", "teacher", "cache", "output_dir")
CACHE_KEYS = ("mode", "k", "temperatures", "bits", "draws", "supervise", "rows_per_shard")


class CacheTeacherRecipe:
    """One pass of the teacher over ``dataset`` and ``heldout``, on one process or several."""

    def __init__(self, cfg: DictConfig) -> None:
        check_keys(cfg, KEYS, required=REQUIRED)
        check_keys(cfg.cache, CACHE_KEYS, "cache", required=("mode",))
        self.device = resolve_device(cfg.get("device", "cpu"))
        self.dtype = resolve_dtype(cfg.get("dtype", "auto"), self.device)
        training.set_seed(seed=cfg.get("seed", 0))
        self.rank, self.world = distributed.start(self.device)
        self.root = Path(cfg.output_dir)
        self.report_rows = 0 if is_null(cfg.get("student")) else cfg.get("report_rows", 4)
        self.cfg = cfg

    def setup(self, cfg: DictConfig) -> None:
        """Data, teacher and the folder, which must be new or hold this very cache."""
        self.tokenizer = build(cfg.tokenizer, "tokenizer")
        check_tokenizers(self.tokenizer, [folder_of(cfg.get(n)) for n in ("student", "teacher")])
        self.transform = call(SpanTokenizer, cfg.get("transform"), "transform", self.tokenizer)
        self.datasets = {}
        real = self.transform.with_real_spans()  # as structured_kd reads its held-out rows
        for name, key, transform in (
            ("train", "dataset", self.transform),
            ("heldout", "heldout", real),
        ):
            if cfg.get(key):
                data = call(dataset_type(cfg[key]), cfg[key], key, transform=transform)
                self.say(*data.report.lines())
                self.datasets[name] = data.rows
        kinds = [SpanKind.parse(name) for name in cfg.cache.get("supervise", ("reason", "act"))]
        self.spec = supervision(kinds)
        self.source, settings = self._source(cfg)
        settings |= {
            **self.source.fingerprint(),
            **describe_tokenizer(self.tokenizer),
            "codec": self.source.codec.settings(),
            "spans": self._spans(cfg, kinds),
        }
        settings["settings"] = {
            **settings["codec"],
            "dtype": str(self.dtype).removeprefix("torch."),
            "batch_size": cfg.get("batch_size", 1),
            "rows_per_shard": cfg.cache.get("rows_per_shard", 32),
        }
        self.writer = CacheWriter(
            self.root,
            self.source,
            self.datasets,
            settings,
            rows_per_shard=cfg.cache.get("rows_per_shard", 32),
            rank=self.rank,
            world=self.world,
        )

    def _spans(self, cfg: DictConfig, kinds: list[SpanKind]) -> dict[str, Any]:
        transform = OmegaConf.to_container(OmegaConf.create(cfg.get("transform") or {}))
        return {**transform, "supervise": [kind.label for kind in kinds]}

    def _source(self, cfg: DictConfig) -> tuple[Any, dict[str, Any]]:
        """Where rows come from, and what a reader must know of the teacher."""
        with training.set_default_dtype(self.dtype), self.device:
            teacher = build(cfg.teacher, "teacher")
        if isinstance(teacher, ServerTeacher):
            size = self.tokenizer.vocab_size
            return ServerSource(teacher, self._codec(cfg), self.spec), {"vocab_size": size}
        weights = {"teacher": hash_weights(teacher)}
        folder = cfg.teacher.get("path")
        if folder and any(Path(folder).expanduser().glob("*.safetensors")):
            weights["weights_files"] = hash_weight_files(folder)
        live = LiveTeacher(teacher)
        shared_vocab_size(live.vocab_size, live.vocab_size, self.tokenizer.vocab_size)
        settings = {"vocab_size": live.vocab_size}
        codec = self._codec(cfg, live)
        if isinstance(codec, HiddenCodec):
            settings["head"] = {"scale": live.head.scale, "softcap": live.head.softcap}
        live.cut_vocab(self.tokenizer.vocab_size)
        source = LiveSource(
            live,
            codec,
            self.spec,
            pad_id=self.tokenizer.pad_id,
            batch_size=cfg.get("batch_size", 1),
            device=self.device,
            weights=weights,
        )
        return source, settings

    def _codec(self, cfg: DictConfig, live: LiveTeacher | None = None) -> Any:
        cache = cfg.cache
        if cache.mode == "hidden" and live is not None:
            width = live.head.weight_VD.shape[1]
            return HiddenCodec(width, str(self.dtype).removeprefix("torch."), live.head)
        options = {"k": cache.get("k", 64), "vocab_size": self.tokenizer.vocab_size}
        options["temperatures"] = list(cache.get("temperatures", [1.0]))
        options["bits"] = cache.get("bits", 8)
        if cache.mode == "sampled":
            options["draws"] = cache.get("draws", 32)
        return make_codec({"mode": cache.mode, **options})

    def run(self) -> None:
        """Writes what is missing and reports."""
        if isinstance(self.source.codec, HiddenCodec) and self.rank == 0:
            shards.write_head(self.root, self.source.codec.head)
        rows = sum(len(r) for r in self.datasets.values())
        with tqdm(total=rows, unit="row", disable=None if self.rank == 0 else True) as bar:
            self.writer.write(bar.update)
        entries = self.writer.finish()
        if self.rank == 0:
            found = report.totals(self.root, entries)
            found["bias"] = self._bias()
            found["versions"] = versions()
            shards.write_json(self.root / shards.REPORT, found)
            self.say(*report.lines(found), *self._remarks(), f"cache: {self.root}")

    def _bias(self) -> list[dict[str, Any]]:
        """Cached against exact divergences, with the student's first weights, on a few rows."""
        if not self.report_rows or isinstance(self.source, ServerSource):
            return []
        with training.set_default_dtype(self.dtype), self.device:
            student = stop_at_hidden(build(self.cfg.student, "student")).eval()
        size = self.tokenizer.vocab_size
        shared_vocab_size(vocab_size_of(student), None, size)
        sample = next(iter(self.datasets.values()))[: self.report_rows]
        return report.compare(self.source, student, head_of(student, size), sample)

    def _remarks(self) -> list[str]:
        if isinstance(self.source, ServerSource):
            return ["bias: unknown, a server shows its top tokens only; entropy is the buckets'"]
        if isinstance(self.source.codec, HiddenCodec):
            return ["bias: none, hidden states are exact"]
        if isinstance(self.source.codec, SampledCodec):
            return [
                "draws: in training the loss lies above these values by a constant of the "
                "student; the gradient is right on average over tokens and draws"
            ]
        return [] if self.report_rows else ["bias: not measured (no student, or no report_rows)"]

    def say(self, *lines: str) -> None:
        """Prints on the main rank, past the progress bar."""
        if self.rank == 0:
            for line in lines:
                tqdm.write(line)


@config.parse
def recipe_main(cfg: DictConfig) -> None:
    """Entry point: ``tune run recipes/cache_teacher.py --config ..``."""
    try:
        with explained("cache_teacher"):
            recipe = CacheTeacherRecipe(cfg)
            recipe.setup(cfg)
            recipe.run()
    finally:
        distributed.stop()


if __name__ == "__main__":
    sys.exit(recipe_main())
