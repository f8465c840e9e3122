"""What a teacher cache costs and loses on real weights, for each mode: one JSON line each.

For a teacher and a student (cut from it, or trained), on held-out trajectories:

* bytes per supervised token, as on disk,
* the loss (forward KL of structured_kd's default) from the cache against the live teacher's,
* the cosine of the two gradients over all parameters of the student,
* seconds for the teacher's part: forward pass, or reading the cache.

    python benchmarks/bench_teacher_cache.py --teacher demo/SmolLM2-135M-Instruct --json

Trained students: ``--student runs/135M_to_15layers_structured_kd/student``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from sad_components.data import HFTokenizer, TrajectoryDataset, collate
from sad_components.data.transform import SpanTokenizer
from sad_components.loss import FusedStructuredKDLoss, HiddenRows
from sad_components.models import cut_student, from_pretrained
from sad_components.models.hidden import head_of, stop_at_hidden
from sad_components.spans import SpanKind
from sad_components.training.report import versions
from sad_components.training.teacher_cache import (
    CachedTeacher,
    CacheWriter,
    HiddenCodec,
    LiveSource,
    SampledCodec,
    TopKCodec,
    shards,
    supervision,
)
from sad_components.training.teacher_cache.codecs import DrawnRows
from sad_components.training.teachers import LiveTeacher, Teacher


def codecs(live: LiveTeacher, vocab_size: int, dtype: torch.dtype) -> dict:
    """The modes to measure, by name."""
    width = live.head.weight_VD.shape[1]
    return {
        "hidden": HiddenCodec(width, str(dtype).removeprefix("torch."), live.head),
        "topk 64, 8 bits": TopKCodec(64, vocab_size),
        "topk 64, 6 bits": TopKCodec(64, vocab_size, bits=6),
        "topk 64, 5 bits": TopKCodec(64, vocab_size, bits=5),
        "topk 256, 8 bits": TopKCodec(256, vocab_size),
        "topk 1024, 8 bits": TopKCodec(1024, vocab_size),
        "sampled 64, 16 drawn": SampledCodec(64, vocab_size, draws=16),
        "sampled 64, 32 drawn": SampledCodec(64, vocab_size, draws=32),
        "sampled 64, 48 drawn": SampledCodec(64, vocab_size, draws=48),
    }


def cache(root: Path, codec, live: LiveTeacher, rows, pad_id: int) -> CachedTeacher:
    """Writes the rows into a cache and opens it."""
    spec = supervision([SpanKind.REASON, SpanKind.ACT])
    source = LiveSource(
        live, codec, spec, pad_id=pad_id, batch_size=1, device=torch.device("cpu"), weights={}
    )
    settings = {"codec": codec.settings(), "vocab_size": live.vocab_size}
    settings |= {"head": {"scale": live.head.scale, "softcap": live.head.softcap}}
    settings["spans"] = {"supervise": ["reason", "act"]}
    writer = CacheWriter(root, source, {"rows": rows}, settings, rows_per_shard=4)
    if isinstance(codec, HiddenCodec):
        shards.write_head(root, codec.head)
    writer.write()
    writer.finish()
    return CachedTeacher(str(root))


class Bench:
    """Loss, gradient and the teacher's seconds over the rows, for any teacher.

    Args:
        student: returns last hidden states.
        rows: tokenised trajectories.
        pad_id: of the tokenizer.
        vocab_size: the shared vocabulary.
    """

    def __init__(self, student, rows, pad_id: int, vocab_size: int) -> None:
        self.student, self.vocab_size = student, vocab_size
        self.loss = FusedStructuredKDLoss()
        self.batches = [collate([row], pad_id, self.loss.spec) for row in rows]
        counts = [self.loss.spec.count(b.span_ids_BS, b.branch_BS) for b in self.batches]
        self.counts = torch.stack(counts).sum(0)

    def measure(self, teacher: Teacher) -> tuple[float, list[torch.Tensor], float]:
        """Loss, gradient per parameter and median seconds per row that the teacher took.

        The loss of draws is completed by the constant that they store.
        """
        self.student.zero_grad(set_to_none=True)
        total, seconds = 0.0, []
        for batch in self.batches:
            chosen = self.loss.spec.supervised(batch.span_ids_BS, batch.branch_BS)
            started = time.perf_counter()
            rows = teacher.rows(batch, chosen)
            seconds.append(time.perf_counter() - started)
            hidden = HiddenRows(
                self.student(batch.tokens_BS)[chosen], head_of(self.student, self.vocab_size)
            )
            out = self.loss.from_hidden(
                hidden,
                rows,
                batch.targets_BS[chosen],
                batch.span_ids_BS[chosen],
                batch.branch_BS[chosen],
                counts=self.counts,
            )
            out.loss.backward()
            total += float(out.loss.detach())
            if isinstance(rows, DrawnRows):
                kinds = self.loss.spec.kinds(batch.span_ids_BS, batch.branch_BS)[chosen]
                scales = self.loss.spec.scales(self.counts)[kinds]
                total += float((scales * rows.offsets[1.0]).sum())
        gradient = [p.grad for p in self.student.parameters() if p.grad is not None]
        return total, gradient, statistics.median(seconds)


def cosine(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """Of two gradients, summed in fp64: they have millions of entries."""
    products = [
        sum(float((x.double() * y.double()).sum()) for x, y in zip(*pair))
        for pair in ((a, b), (a, a), (b, b))
    ]
    return products[0] / (products[1] * products[2]) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--teacher", required=True, help="folder in Hugging Face format")
    parser.add_argument("--student", help="folder of a trained student; default: cut the teacher")
    parser.add_argument("--layers", type=int, default=15, help="of the cut student")
    parser.add_argument("--rows", type=int, default=4, help="held-out trajectories")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", action="store_true", help="print JSON lines only")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    tokenizer = HFTokenizer(options.teacher)
    transform = SpanTokenizer(tokenizer, max_seq_len=1024)
    data = TrajectoryDataset("shipped:household/heldout", transform, limit=options.rows)
    live = LiveTeacher(from_pretrained(options.teacher, dtype=dtype))
    if options.student:
        student = from_pretrained(options.student, dtype=dtype)
    else:
        student = cut_student(options.teacher, num_layers=options.layers, dtype=dtype)
    bench = Bench(stop_at_hidden(student), data.rows, tokenizer.pad_id, live.vocab_size)
    exact, gradient, seconds = bench.measure(live)
    where = {"student": options.student or f"first {options.layers} layers, cut"}
    where |= {"dtype": options.dtype, "rows": len(data.rows), "versions": versions()}
    where["supervised_tokens"] = int(bench.counts.sum())
    show({"method": "live", "loss": exact, "teacher_seconds_per_row": seconds}, where, options)
    for name, codec in codecs(live, tokenizer.vocab_size, dtype).items():
        with tempfile.TemporaryDirectory() as folder:
            teacher = cache(Path(folder), codec, live, data.rows, tokenizer.pad_id)
            size = sum(p.stat().st_size for p in Path(folder).glob("rows/*.safetensors"))
            loss, mine, seconds = bench.measure(teacher)
            teacher.close()
        record = {
            "method": name,
            "bytes_per_token": size / int(bench.counts.sum()),
            "loss": loss,
            "bias": loss / exact - 1,
            "gradient_cosine": cosine(mine, gradient),
            "bit_equal": loss == exact and all(map(torch.equal, mine, gradient)),
            "teacher_seconds_per_row": seconds,
        }
        show(record, where, options)


def show(record: dict, where: dict, options: argparse.Namespace) -> None:
    """One line: JSON, or the figures for people."""
    if options.json:
        print(json.dumps({**record, **where}), flush=True)
        return
    figures = (f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items())
    print(", ".join(figures), flush=True)


if __name__ == "__main__":
    main()
