"""How near an exported student is to the eager one, how large and how fast it is.

Shape legend: S tokens, V vocabulary.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchtune.modules import TransformerDecoder

from sad_components.evaluation.decoding import CachedDecoder, NextToken, Prefix

#: Times that a speed is measured; the median counts.
_REPEATS = 5


@dataclass(frozen=True)
class Probe:
    """What exports are compared on.

    Args:
        rows: transcripts as token ids: their logits are compared.
        prompts: beginnings of transcripts that a model goes on from, greedily.
        new_tokens: written behind each prompt.
        stop_tokens: end the text.
        prefill: tokens read, to measure speed.
    """

    rows: Sequence[Sequence[int]]
    prompts: Sequence[Sequence[int]]
    new_tokens: int
    stop_tokens: Sequence[int]
    prefill: Sequence[int]

    def cut(self, max_seq_len: int) -> Probe:
        """The same, short enough for a cache of ``max_seq_len`` tokens.

        Raises:
            ValueError: no room for what is to be written.
        """
        room = max_seq_len - self.new_tokens
        if room < 1:
            raise ValueError(
                f"max_seq_len is {max_seq_len}, but the comparison writes {self.new_tokens} "
                "tokens: lower compare.new_tokens, or raise max_seq_len"
            )
        return Probe(
            [row[:max_seq_len] for row in self.rows],
            [prompt[:room] for prompt in self.prompts],
            self.new_tokens,
            self.stop_tokens,
            self.prefill[:room],
        )


@torch.no_grad()
def eager_logits(model: TransformerDecoder, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits [S, V] of each row, fp32, by the plain model without a cache."""
    return [model(torch.tensor([list(row)]))[0].float() for row in rows]


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Norm of all differences of logits, relative to the norm of all ``expected`` ones."""
    off = sum(float((a - b).double().square().sum()) for a, b in zip(found, expected, strict=True))
    return (off / sum(float(b.double().square().sum()) for b in expected)) ** 0.5


def greedy(model: NextToken, probe: Probe) -> list[list[int]]:
    """The tokens that a model likes best behind each prompt, the stop token included."""
    texts = []
    for session, prompt in enumerate(probe.prompts):
        ids = list(prompt)
        for _ in range(probe.new_tokens):
            token = int(model.logits([Prefix(session, ids)])[0].argmax())
            ids = [*ids, token]
            if token in probe.stop_tokens:
                break
        texts.append(ids[len(prompt) :])
    return texts


@torch.no_grad()
def would_write(model: TransformerDecoder, probe: Probe, texts: Sequence[Sequence[int]]) -> bool:
    """Whether the plain model writes these texts behind the prompts, greedily."""
    for prompt, text in zip(probe.prompts, texts, strict=True):
        logits_SV = model(torch.tensor([[*prompt, *text[:-1]]]))[0, len(prompt) - 1 :]
        if logits_SV.argmax(-1).tolist() != list(text):
            return False
    return True


def speeds(model: NextToken, probe: Probe) -> dict[str, float]:
    """Tokens per second of reading a prompt and of writing behind it.

    Returns:
        ``prefill`` and ``decode`` by the clock, and the same with ``_cpu``: per second that the
        process computed, which other work on the machine changes less.
    """
    prompt = list(probe.prefill)
    figures: dict[str, list[float]] = {}
    for repeat in range(_REPEATS):
        session = 1000 + repeat
        first = prompt[0] + repeat  # another first token: nothing read before can be used
        ids = [first % int(max(prompt) + 1), *prompt[1:]]
        logits_V, took = _timed(lambda s=session, i=ids: model.logits([Prefix(s, i)])[0])
        for unit, seconds in took.items():
            figures.setdefault(f"prefill{unit}", []).append(len(ids) / max(seconds, 1e-9))
        ids, took = _timed(lambda s=session, i=ids, v=logits_V: _go_on(model, s, i, v, probe))
        for unit, seconds in took.items():
            rate = probe.new_tokens / max(seconds, 1e-9)
            figures.setdefault(f"decode{unit}", []).append(rate)
    return {name: median(values) for name, values in figures.items()}


def _go_on(
    model: NextToken, session: int, ids: list[int], logits_V: Tensor, probe: Probe
) -> list[int]:
    for _ in range(probe.new_tokens):
        ids = [*ids, int(logits_V.argmax())]
        logits_V = model.logits([Prefix(session, ids)])[0]
    return ids


def _timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, {"": time.perf_counter() - wall, "_cpu": time.process_time() - cpu}


def eager_row(
    model: TransformerDecoder, probe: Probe, reference: Reference | None, size: int
) -> dict[str, Any]:
    """Figures of an eager model, the same for a quantised one.

    Args:
        model: in eval mode.
        probe: what to compare on.
        reference: the fp32 student; None: this is it.
        size: bytes of its weights on the disk.
    """
    logits = eager_logits(model, probe.rows)
    cached = CachedDecoder(model)
    texts = greedy(cached, probe)
    measured = speeds(cached, probe)
    cached.close()
    row = {"runtime": "eager", "bytes": size, **_named(measured)}
    if reference is None:
        return {**row, "error": 0.0, "greedy_equal": True}
    error = relative_error(logits, reference.logits)
    return {**row, "error": error, "greedy_equal": texts == reference.texts}


@dataclass(frozen=True)
class Reference:
    """The eager fp32 student on the probe.

    Args:
        logits: [S, V] of each row.
        texts: what it writes behind each prompt.
    """

    logits: list[Tensor]
    texts: list[list[int]]

    @classmethod
    def of(cls, model: TransformerDecoder, probe: Probe) -> Reference:
        """By the model itself, with a cache for writing."""
        logits = eager_logits(model, probe.rows)
        cached = CachedDecoder(model)
        try:
            return cls(logits, greedy(cached, probe))
        finally:
            cached.close()


def exported_row(
    student: Any, own: TransformerDecoder | None, probe: Probe, reference: Reference
) -> dict[str, Any]:
    """Figures of an exported student.

    Args:
        student: ``ExportedStudent`` or the like.
        own: the eager decoder that was exported, quantised as it is; None: there is none.
        probe: what to compare on.
        reference: the fp32 student.

    Returns:
        ``error`` against the fp32 student, ``error_own`` against ``own``; ``greedy_equal`` and
        ``greedy_equal_own``: whether it writes what they write; speeds and bytes.
    """
    found = [student.sequence_logits(row) for row in probe.rows]
    texts = greedy(student, probe)
    file = student.folder / student.manifest.model_file
    row = {
        "runtime": student.manifest.kind,
        "bytes": file.stat().st_size,
        **_named(speeds(student, probe)),
        "error": relative_error(found, reference.logits),
        "greedy_equal": texts == reference.texts,
    }
    if own is None:
        return row
    return {
        **row,
        "error_own": relative_error(found, eager_logits(own, probe.rows)),
        "greedy_equal_own": would_write(own, probe, texts),
    }


def _named(measured: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}_tokens_per_s": value for name, value in measured.items()}


def weights_size(folder: Path) -> int:
    """Bytes of a folder's safetensors files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


_COLUMNS: tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...] = (
    ("runtime", lambda r: r["runtime"]),
    ("MB", lambda r: f"{r['bytes'] / 1e6:.2f}"),
    ("error", lambda r: _error(r.get("error"))),
    ("own error", lambda r: _error(r.get("error_own"))),
    ("greedy", lambda r: _same(r.get("greedy_equal"))),
    ("own greedy", lambda r: _same(r.get("greedy_equal_own"))),
    ("prefill", lambda r: _speed(r.get("prefill_tokens_per_s"))),
    ("decode", lambda r: _speed(r.get("decode_tokens_per_s"))),
)


def comparison_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of the rows by name, as text; errors are relative, speeds tokens a second.

    A row with ``not_run`` shows the reason instead of figures.
    """
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("")
    for name, _ in _COLUMNS:
        table.add_column(name, justify="right")
    notes = []
    for name, row in rows.items():
        reason = row.get("not_run")
        shown = {"error": None, **row}
        table.add_row(name, *(read(shown) for _, read in _COLUMNS))
        if reason:
            notes.append(f"{name}: written and reloaded, not run: {reason}")
    out = io.StringIO()
    console = Console(width=110, no_color=True, highlight=False, markup=False, file=out)
    console.print(table)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join([*lines, *notes])


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _same(value: bool | None) -> str:
    return "-" if value is None else "equal" if value else "differs"


def _speed(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
