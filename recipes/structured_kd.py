"""Distils an agent: separate losses for what it thinks and what it does.

Run it:

    tune run recipes/structured_kd.py --config tiny/structured_kd
    tune run --nproc_per_node 2 recipes/structured_kd.py --config my.yaml

``teacher: null`` with a cross-entropy loss fine-tunes any model on trajectories (imitation),
which is how teachers are made. docs/method.md says what is computed, docs/recipes.md every key.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torchtune import config, training
from tqdm import tqdm

from sad_components.data import Batch, Batching, StepOrder, blank, collate_packed, dataset_type
from sad_components.data.curriculum import Curriculum, CurriculumOrder
from sad_components.data.transform import SpanTokenizer, TokenizedTrajectory
from sad_components.evaluation.heldout import HeldoutEvaluator, format_table, teacher_row
from sad_components.export.model_card import write_run_cards
from sad_components.loss import HiddenRows, LossOutput
from sad_components.models.hidden import (
    head_of,
    num_parameters,
    stop_at_hidden,
    vocab_size_of,
)
from sad_components.models.last_layer import hidden_at
from sad_components.spans import SpanKind
from sad_components.training import distributed, sharding, switches
from sad_components.training.best import BestScore
from sad_components.training.checkpoints import Checkpoints, CheckpointWriter
from sad_components.training.config import (
    ConfigError,
    build,
    call,
    check_counts,
    check_flags,
    check_keys,
    is_null,
)
from sad_components.training.errors import explained
from sad_components.training.guards import NonfiniteGuard, clip_gradients_, rows_by_rank
from sad_components.training.interrupts import Interrupt
from sad_components.training.meta_models import base_folder_of, folder_of
from sad_components.training.precision import resolve_device, resolve_dtype
from sad_components.training.preflight import preflight
from sad_components.training.random_state import random_states, set_random_state
from sad_components.training.report import Throughput, versions
from sad_components.training.run_folder import RunFolder
from sad_components.training.student_weights import StudentWeights
from sad_components.training.teacher_precision import build_teacher
from sad_components.training.teachers import LiveTeacher, as_teacher
from sad_components.training.vocabulary import check_tokenizers, shared_vocab_size

KEYS = (
    # what
    *("tokenizer", "transform", "dataset", "heldout", "teacher", "student", "loss"),
    # how
    *("optimizer", "lr_scheduler", "epochs", "max_steps", "batch_size", "clip_grad_norm"),
    *("max_tokens_per_batch", "packing", "curriculum"),
    *("gradient_accumulation_steps", "seed", "device", "dtype", "compile"),
    *(*switches.KEYS, "teacher_precision", *sharding.KEYS),
    # where and how often
    *("output_dir", "resume", "metric_logger", "log_every_n_steps", "eval_every_n_steps"),
    *("eval_batch_size", "save_every_n_steps", "keep_checkpoints", "keep_best", "async_save"),
    "nonfinite",
)
REQUIRED = ("tokenizer", "dataset", "student", "loss", "optimizer", "output_dir")
COUNTS = (
    *("epochs", "batch_size", "gradient_accumulation_steps", "log_every_n_steps"),
    *("eval_batch_size", "keep_checkpoints"),
)
#: Null for never, or without limit.
OPTIONAL_COUNTS = (
    *("max_steps", "max_tokens_per_batch", "eval_every_n_steps", "save_every_n_steps"),
)
#: Widths of packed batches on a GPU: flex attention compiles anew for each.
PACKED_MULTIPLE = 128


class StructuredKDRecipe:
    """Offline structured distillation on one process or several.

    A step reads ``batch_size * gradient_accumulation_steps`` rows per process. Its loss is divided
    by the step's token counts per span kind over all of them, so that the split into micro-batches
    and ranks does not change the gradient.
    """

    def __init__(self, cfg: DictConfig) -> None:
        check_keys(cfg, KEYS, required=REQUIRED)
        check_counts(cfg, COUNTS)
        check_flags(cfg, ("compile", "async_save"))
        check_counts(
            cfg, ("seed", *(k for k in OPTIONAL_COUNTS if cfg.get(k) is not None)), least=0
        )
        self.device = resolve_device(cfg.get("device", "cpu"))
        self.dtype = resolve_dtype(cfg.get("dtype", "auto"), self.device)
        self.switches = switches.Switches.read(cfg, self.device, self.dtype)
        self.seed = training.set_seed(seed=cfg.get("seed", 0))
        self.batch_size = cfg.get("batch_size", 1)
        self.accumulation = cfg.get("gradient_accumulation_steps", 1)
        self.clip = cfg.get("clip_grad_norm")
        self.compile = cfg.get("compile", False)
        self.log_every = cfg.get("log_every_n_steps", 1)
        self.eval_every = cfg.get("eval_every_n_steps")
        self.save_every = cfg.get("save_every_n_steps")
        self.resume = cfg.get("resume", False)
        self.rank, self.world = distributed.start(self.device)
        self.is_main = self.rank == 0
        self.sharding = sharding.Sharding.read(cfg, self.world, self.device)
        self.interrupt = Interrupt(launched=self.world > 1)
        self.cfg = cfg
        self.step = 0
        self.heldout: dict[str, dict[str, float]] = {}

    # -- setup --------------------------------------------------------------------------------

    def setup(self, cfg: DictConfig) -> None:
        """Builds everything the config names, in the order in which a mistake is cheapest."""
        self.loss = build(cfg.loss, "loss")
        self.spec = self.loss.spec
        if self.spec.needs_teacher and is_null(cfg.get("teacher")):
            raise ConfigError(
                "the loss has a divergence, but teacher is null; name a teacher, or use the "
                "imitation loss (divergence: null, ce: 1.0)"
            )
        self.best = BestScore.read(cfg, has_teacher=not is_null(cfg.get("teacher")))
        keep = cfg.get("keep_checkpoints", 2)
        here = {"resume": self.resume, "keep": keep}
        self.folder = RunFolder(cfg.output_dir, **here) if self.is_main else None
        distributed.barrier()
        self.checkpoints = Checkpoints(cfg.output_dir, keep)
        self.resume = bool(self.resume and self.checkpoints.all())
        self.writer = CheckpointWriter(self.checkpoints, background=cfg.get("async_save", False))
        self.guard = NonfiniteGuard(cfg.get("nonfinite", "stop"), self.folder)
        self.curriculum = None
        if cfg.get("curriculum") is not None:
            self.curriculum = call(Curriculum, cfg.curriculum, "curriculum")
        self.tokenizer = build(cfg.tokenizer, "tokenizer")
        check_tokenizers(self.tokenizer, [folder_of(cfg.get(n)) for n in ("student", "teacher")])
        self.transform = call(SpanTokenizer, cfg.get("transform"), "transform", self.tokenizer)
        self._setup_data(cfg)
        self._setup_models(cfg)
        self._setup_order()
        self._setup_optimizer(cfg)
        if self.resume:
            self._load_checkpoint()
        self.logger = build(cfg.get("metric_logger"), "metric_logger") if self.is_main else None
        if self.is_main:
            self.folder.write_config(cfg)
            self.folder.forget_after(self.step)
        self.throughput = Throughput(self.device, distributed.sum_over_ranks)

    def _setup_data(self, cfg: DictConfig) -> None:
        kind = dataset_type(cfg.dataset)
        self.data = call(kind, cfg.dataset, "dataset", transform=self.transform)
        heldout = cfg.get("heldout")
        real = self.transform.with_real_spans()  # scores mean the same in every ablation
        heldout = heldout and call(dataset_type(heldout), heldout, "heldout", transform=real)
        self.heldout_rows = heldout.rows if heldout else []
        for part in (self.data, heldout):
            self.say(*(part.report.lines() if part else []))
        rows_per_step = self.batch_size * self.accumulation * self.world
        lengths = self.data.lengths
        mixture = {"groups": self.data.groups, "weights": self.data.weights}
        self.order = StepOrder(lengths, rows_per_step, self.seed, **mixture)
        self.batching = Batching(
            lengths,
            self.batch_size,
            max_tokens=cfg.get("max_tokens_per_batch"),
            packing=cfg.get("packing", False),
        )
        self.width = PACKED_MULTIPLE if self.batching.packing and self.device.type == "cuda" else 1
        self.total_steps = self.order.steps_per_epoch * cfg.get("epochs", 1)
        if cfg.get("max_steps") is not None:
            self.total_steps = min(self.total_steps, cfg.max_steps)
        if self.is_main:
            reports = (self.data.report, heldout.report if heldout else None)
            made = (self.loss, self.order, self.batching, reports, self.dtype, self.device)
            self.say(*preflight(cfg, self.tokenizer, *made, self.world))
        self.evaluator = heldout and HeldoutEvaluator(
            heldout.rows,
            self.tokenizer.pad_id,
            self.tokenizer.decode,
            batch_size=cfg.get("eval_batch_size", 4),
            rank=self.rank,
            world=self.world,
            reduce=distributed.sum_over_ranks,
        )

    def _setup_models(self, cfg: DictConfig) -> None:
        with training.set_default_dtype(self.dtype), self.sharding.build_device:
            student = build(cfg.student, "student")
        distributed.same_start(student.parameters())
        precision, place = cfg.get("teacher_precision"), self.sharding.teacher_device(cfg)
        teacher, lines = build_teacher(cfg.get("teacher"), precision, self.dtype, place)
        # what could not be saved is refused here: better said now than at the end
        self.weights = StudentWeights(student, getattr(self.tokenizer, "path", None))
        self.say(*self.weights.describe(), *self.switches.apply_(student), *lines)
        self.say(*self.sharding.describe())
        self.teacher = as_teacher(teacher)
        self.vocab = shared_vocab_size(
            vocab_size_of(student),
            self.teacher and self.teacher.vocab_size,
            self.tokenizer.vocab_size,
        )
        if self.teacher:
            self.teacher.cut_vocab(self.vocab)
            for rows in (self.data.rows, self.heldout_rows):  # apart: they may lie on disk
                self.teacher.check(self.spec, self.tokenizer, rows)
        self.student = stop_at_hidden(student).train()
        self.offload = self.switches.offload(self.student)
        self.loss_fn = self.loss.from_hidden
        if self.compile:
            training.compile_model(self.student, verbose=False)
            self.loss_fn = torch.compile(self.loss_fn, dynamic=True)
        self.weights.shard(self.sharding)
        if isinstance(self.teacher, LiveTeacher):
            self.sharding.shard_teacher_(self.teacher.model)

    def _setup_order(self) -> None:
        """The curriculum's order, if there is one: now the teacher's entropy can be asked for."""
        if self.curriculum is not None:
            rows, knows = self.data.rows, self.teacher and self.curriculum.gamma
            entropies = self.teacher.entropies(rows) if knows else None
            complexities = self.curriculum.complexities(self.data.table, rows, entropies)
            self.order = CurriculumOrder(
                self.order, complexities, self.curriculum, self.total_steps
            )
        epoch = [self.order.step_rows(step) for step in range(self.order.steps_per_epoch)]
        self.say(*self.order.describe(), *self.batching.describe(epoch, self.world))

    def _setup_optimizer(self, cfg: DictConfig) -> None:
        self.optimizer = build(cfg.optimizer, "optimizer", self.weights.trained)
        self.scheduler = build(
            cfg.get("lr_scheduler"),
            "lr_scheduler",
            self.optimizer,
            num_training_steps=self.total_steps,
        )

    # -- training -----------------------------------------------------------------------------

    def train(self) -> None:
        """Scores, trains with scores in between, scores again and writes the student.

        Raises:
            SystemExit: SIGTERM or SIGINT came; a checkpoint was saved after the step.
        """
        self.interrupt.listen()
        if self.evaluator and self.teacher:
            scores = self.evaluator.score_teacher(self.teacher.rows, self.device)
            self.heldout.setdefault("teacher", teacher_row(scores))
            if self.teacher.kl_note:
                self.say(f"KL and teacher entropy are {self.teacher.kl_note}")
        if self.evaluator and self.step == 0:
            self.evaluate("before")
        shown = None if self.is_main else True  # None: a bar on a terminal only
        progress = tqdm(total=self.total_steps, initial=self.step, disable=shown)
        if self._evaluate_if_due():  # what a signal had left out
            self.save_checkpoint()
        while self.step < self.total_steps:
            self.throughput.pause()
            metrics = self.train_step()
            self.step += 1
            progress.update()
            progress.set_postfix({k: f"{v:.3g}" for k, v in metrics.items() if k in _SHOWN})
            if self.step % self.log_every == 0:
                self.log(metrics)
            if self.throughput.votes:
                self.stop_early()
            is_best = self._evaluate_if_due()
            if is_best or (self.save_every and self.step % self.save_every == 0):
                self.save_checkpoint()
        progress.close()
        self.finish()

    def train_step(self) -> dict[str, float]:
        """One optimizer step; its loss and per-span means over all ranks."""
        metrics = {**self.gradients(), **self.order.metrics(self.step)}
        with self.throughput.timing("optimizer"):
            metrics["grad_norm"] = float(clip_gradients_(self.weights.trained, self.clip))
            if self.guard.passes(self.step + 1, metrics, self._rows_of_step):
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        if self.scheduler is not None:
            self.scheduler.step()
        rates = self.throughput.rates(vote=self.interrupt.received is not None)
        return {**metrics, **self.guard.metrics(), **rates}

    def _rows_of_step(self) -> list[dict[str, Any]]:
        rows = self.order.step_rows(self.step)
        return rows_by_rank(rows, self.data, self.batching, self.world)

    def gradients(self) -> dict[str, float]:
        """The step's gradients in ``.grad``, summed over micro-batches and ranks."""
        with self.throughput.timing("data"):
            micro = self._micro_batches()
        counts = torch.zeros(len(SpanKind), dtype=torch.float64, device=self.device)
        for batch in micro:
            counts += self.spec.count(batch.span_ids_BS, batch.branch_BS)
        distributed.sum_over_ranks(counts)
        sums: dict[str, torch.Tensor] = {}
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in micro:
            output = self.batch_loss(batch, counts)
            with self.throughput.timing("student"):
                output.loss.backward()
            total += output.loss.detach().double()
            for name, value in output.sums.items():
                sums[name] = sums.get(name, 0) + value
            self.throughput.add(batch.num_tokens, output.sums["count"].sum())
        if not self.sharding.active:  # else it has summed them
            distributed.sum_gradients(self.weights.trained)
        return {"loss": float(distributed.sum_over_ranks(total)), **self._span_means(sums)}

    def _micro_batches(self) -> list[Batch]:
        """This rank's batches of the step; the teacher hears which rows come next."""
        pad_id = self.tokenizer.pad_id
        micro = [
            collate_packed(rows, pad_id, self.spec, self.width).to(self.device)
            for rows in self._micro_rows(self.step)
        ]
        if self.sharding.active:  # every rank takes part in every forward and backward pass
            most = distributed.most_over_ranks(len(micro), self.device)
            micro += [blank(pad_id).to(self.device)] * (most - len(micro))
        if self.teacher:
            ahead = self._micro_rows(self.step + 1)
            self.teacher.prefetch([row for batch in ahead for seq in batch for row in seq])
        return micro

    def _micro_rows(self, step: int) -> list[list[list[TokenizedTrajectory]]]:
        """This rank's rows of a step: micro-batches of sequences of rows."""
        batches = self.batching.micro_batches(self.order.step_rows(step), self.rank, self.world)
        return [[[self.data[i] for i in rows] for rows in batch] for batch in batches]

    def batch_loss(self, batch: Batch, counts: torch.Tensor) -> LossOutput:
        """Loss of one micro-batch: heads run on the supervised tokens only."""
        chosen = self.spec.supervised(batch.span_ids_BS, batch.branch_BS)
        teacher = None
        if self.spec.needs_teacher:
            with self.throughput.timing("teacher"):
                teacher = self.teacher.rows(batch, chosen)
        with self.throughput.timing("student"), self.offload:
            hidden_ND = hidden_at(self.student, batch.tokens_BS, chosen, **batch.attention)
        with self.throughput.timing("loss"):
            return self.loss_fn(
                HiddenRows(hidden_ND, head_of(self.student, self.vocab)),
                teacher,
                batch.targets_BS[chosen],
                batch.span_ids_BS[chosen],
                batch.branch_BS[chosen],
                counts=counts,
            )

    def _span_means(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """``kl_reason``, ``ce_act``, .. over the step's tokens of all ranks."""
        names = ("ce", "kl", "entropy", "agree") if self.spec.needs_teacher else ("ce",)
        empty = torch.zeros(len(SpanKind), dtype=torch.float64, device=self.device)
        table = torch.stack([sums.get(name, empty) for name in ("count", *names)])
        distributed.sum_over_ranks(table)
        return {
            f"{name}_{kind.label}": float(table[row, kind] / table[0, kind])
            for row, name in enumerate(names, start=1)
            for kind in self.spec.by_kind
            if table[0, kind] > 0
        }

    # -- what comes out -------------------------------------------------------------------------

    def _evaluate_if_due(self) -> bool:
        """:meth:`evaluate` in the middle of training, every some steps."""
        due = self.evaluator and self.eval_every and self.step and not self.step % self.eval_every
        done = self.heldout.get("during", {}).get("step") == self.step
        return bool(due and not done) and self.evaluate("during")

    def evaluate(self, when: str) -> bool:
        """Scores the student on the held-out trajectories; whether it is ``keep_best``'s best."""
        sharding.gather_head(self.student)
        scores = self.evaluator.score(self.student, head_of(self.student, self.vocab)).to_dict()
        self.heldout[when] = {**scores, "step": self.step}
        if self.is_main:
            self.folder.log({"step": self.step, **{f"heldout_{k}": v for k, v in scores.items()}})
        shown = ", ".join(f"{k} {v:.4g}" for k, v in scores.items() if k in _SHOWN)
        self.say(f"held-out, step {self.step}: {shown}")
        return self.best is not None and self.step > 0 and self.best.improved(self.step, scores)

    def log(self, metrics: dict[str, float]) -> None:
        if not self.is_main:
            return
        metrics = {"lr": self.optimizer.param_groups[0]["lr"], **metrics}
        self.folder.log({"step": self.step, **metrics})
        if not sys.stderr.isatty():
            figures = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items() if k in _SHOWN)
            self.say(f"step {self.step} of {self.total_steps}: {figures}")
        if self.logger is not None:
            self.logger.log_dict(metrics, step=self.step)

    def save_checkpoint(self) -> None:
        """Trained weights, optimizer, scheduler, step and random state: a run can go on."""
        state = {
            "step": self.step,
            "order": self.order.settings(),
            "optimizer": sharding.whole_optimizer_state(self.optimizer),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "heldout": self.heldout,
            "rng": random_states(self.device),
            "guard": self.guard.state_dict(),
            "best": self.best and self.best.state_dict(),
        }
        with self.weights.gathered(self.is_main):
            if self.is_main:
                self.folder.sync_metrics()
                protected = self.best and self.best.step
                self.writer.save(self.step, state, self.weights.snapshot, protected=protected)
            distributed.barrier()

    def stop_early(self) -> None:
        """Leaves a checkpoint and ends the process: it was asked to."""
        self.save_checkpoint()
        self.writer.close()
        distributed.barrier()  # whoever leaves first makes a launcher end the others
        self.say(
            f"{self.interrupt.name}: stopped after step {self.step} of {self.total_steps}, and "
            "saved a checkpoint; resume: true goes on from it"
        )
        distributed.stop()
        raise SystemExit(self.interrupt.exit_code)

    def _load_checkpoint(self) -> None:
        path, state = self.checkpoints.load(verify=self.is_main)
        order = self.order.settings()
        if state["order"] != order:
            raise ConfigError(
                f"resume: true goes on in the run's order of rows ({state['order']}), but this "
                f"config has another ({order}); use the run's seed, dataset and curriculum (with "
                "its number of steps), and as many rows per step (batch_size x "
                "gradient_accumulation_steps x processes)"
            )
        self.weights.load_(path)
        sharding.load_optimizer_state_(self.optimizer, state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        set_random_state(state["rng"], self.rank, self.device)
        self.guard.load_state_dict(state["guard"])
        if self.best:
            self.best.load_state_dict(state["best"])
        self.step, self.heldout = state["step"], state["heldout"]
        self.say(f"resuming after step {self.step} from {path}")

    def finish(self) -> None:
        """Last scores, the student (and its adapter) in Hugging Face format, and the summary."""
        if self.evaluator and self.evaluate("after"):
            self.save_checkpoint()
        self.writer.close()
        with self.weights.gathered(self.is_main):
            if not self.is_main:
                return
            made = self.weights.write_finished(self.folder, base_folder_of(self.cfg.student))
        made += self.switches.write_quantized(self.folder.student, self.folder.quantized)
        summary = self.summary()
        self.folder.write_summary(summary)
        made += write_run_cards(self.folder.path, summary)
        order = ("before", "after", "teacher")
        names = {"before": "student before", "after": "student after", "teacher": "teacher"}
        rows = {names[k]: self.heldout[k] for k in order if k in self.heldout}
        if rows:
            self.say("", format_table(rows))
        self.say("", *made, f"summary: {self.folder.path}/summary.json")

    def summary(self) -> dict[str, Any]:
        return {
            "heldout": self.heldout,
            "best": self.best and self.best.state_dict(),
            "skipped_steps": self.guard.skipped,
            "data": self.data.report.to_dict(),
            "steps": self.step,
            "order": {**self.order.settings(), **self.order.metrics(max(self.step - 1, 0))},
            "parameters": {
                "student": num_parameters(self.student),
                "trained": self.weights.num_trained,
                "teacher": self.teacher and self.teacher.num_parameters,
            },
            "throughput": self.throughput.totals(),
            "seed": self.seed,
            "dtype": str(self.dtype).removeprefix("torch."),
            "world_size": self.world,
            "versions": versions(),
            "config": OmegaConf.to_container(self.cfg, resolve=True),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def say(self, *lines: str) -> None:
        """Prints on the main rank, past the progress bar."""
        if self.is_main:
            for line in lines:
                tqdm.write(line)

    def cleanup(self) -> None:
        """Ends what runs beside the training, and gives the signals back."""
        self.interrupt.restore()
        if getattr(self, "logger", None) is not None:
            self.logger.close()
        if getattr(self, "writer", None) is not None:
            self.writer.close()


_SHOWN = ("loss", "kl_reason", "kl_act", "ce", "action_match", "tokens_per_s")


@config.parse
def recipe_main(cfg: DictConfig) -> None:
    """Entry point: ``tune run recipes/structured_kd.py --config ..``."""
    recipe = None
    try:
        with explained("structured_kd"):
            recipe = StructuredKDRecipe(cfg)
            recipe.setup(cfg)
            recipe.train()
            distributed.stop()  # not after a failure: the others may not be able to
    finally:
        if recipe is not None:
            recipe.cleanup()


if __name__ == "__main__":
    sys.exit(recipe_main())
