"""What finding spans costs beside tokenising: must stay at or below 1.3 times.

Segmenting plus tokenising is ``SpanTokenizer.rows``: cut every turn into spans, render the text,
encode it, align tokens to spans. Tokenising alone is one plain call of the same tokenizer on the
same rendered text, ``Tokenizer.encode(text).ids``, without rendering, offsets or control tokens
kept out of content. The two take turns, trajectory set by trajectory set; medians are compared.
Both know all words from an earlier pass (``sad_components.data.words``, ``tokenizers``' own cache).

    python benchmarks/bench_span_tokenizer.py [--json] [--quick] [--tokenizer DIR] [--cut FAMILY]

``--cut`` gives the tokenizer another family's cut into words (a vocabulary of one's own is not
needed to see what that costs). SAD_CORPORA names a folder of real transcripts (JSONL), measured
as well when it is set.
"""

from __future__ import annotations

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread for both sides

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from sad_components.data import HFTokenizer, SpanTokenizer
from sad_components.data.shipped import resolve_source
from sad_components.data.words import SPLITS
from sad_components.formats.registry import Detector, to_trajectory
from sad_components.trajectory import Trajectory, TrajectoryError, iter_json_lines, read_jsonl

LIMIT = 1.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer trajectories and rounds")
    parser.add_argument("--tokenizer", default="shipped:household/tokenizer")
    parser.add_argument("--cut", choices=SPLITS, help="into words, as this family does")
    arguments = parser.parse_args()
    rows, rounds = (40, 5) if arguments.quick else (200, 25)
    tokenizer = HFTokenizer(arguments.tokenizer)
    if arguments.cut:
        tokenizer = cut_as(arguments.cut, tokenizer.path)
    results = []
    for name, trajectories in sources(rows).items():
        for style in ("plain", "chat"):
            results.append(
                {"source": name, "style": style, **measure(tokenizer, trajectories, style, rounds)}
            )
    settings = {"limit": LIMIT, "tokenizer": arguments.tokenizer, "cut": arguments.cut}
    report = {**settings, **machine(), "results": results}
    print(json.dumps(report, indent=2) if arguments.json else table(report))


def cut_as(family: str, folder: Path) -> HFTokenizer:
    """The byte-level BPE in ``folder`` with the pre-tokenizer and normalizer of a family."""
    described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    split = {"type": "Split", "pattern": {"Regex": SPLITS[family]}, "behavior": "Isolated"}
    as_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    steps = [{**split, "invert": False}, {**as_bytes, "use_regex": False}]
    described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    described["normalizer"] = {"type": "NFC"} if family == "qwen2" else None
    with tempfile.TemporaryDirectory() as copied:
        shutil.copytree(folder, copied, dirs_exist_ok=True, ignore=lambda *_: ["model.safetensors"])
        (Path(copied) / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
        return HFTokenizer(copied)


def sources(rows: int) -> dict[str, list[Trajectory]]:
    """Trajectories by where they come from, at most ``rows`` of each."""
    found = {"household": list(read_jsonl(resolve_source("shipped:household/train")))[:rows]}
    folder = os.environ.get("SAD_CORPORA")
    for path in sorted(Path(folder).glob("*.jsonl")) if folder else ():
        if trajectories := real_trajectories(path, rows):
            found[path.stem] = trajectories
    return found


def real_trajectories(path: Path, rows: int) -> list[Trajectory]:
    """What can be cut of a file's first rows."""
    records = [record for _, record in zip(range(rows), (r for _, r in iter_json_lines(path)))]
    try:
        detector = Detector(records[:50])
    except TrajectoryError:
        return []  # no transcripts
    found = []
    for record in records:
        try:
            found.append(to_trajectory(record, detector.choose(record)[0]))
        except TrajectoryError:
            continue
    return found


def measure(
    tokenizer: HFTokenizer, trajectories: list[Trajectory], style: str, rounds: int
) -> dict[str, float]:
    """Medians over ``rounds`` turns of both, in microseconds a trajectory, and their ratio."""
    transform = SpanTokenizer(tokenizer, style=style)
    usable, texts = [], []
    for trajectory in trajectories:
        try:
            transform.rows(trajectory)
        except TrajectoryError:
            continue
        usable.append(trajectory)
        texts += [rendered.text for rendered in transform.render(trajectory)]
    if not usable:
        return {"trajectories": 0}
    encode = tokenizer.backend.encode

    def alone() -> None:
        for text in texts:
            encode(text, add_special_tokens=False).ids  # noqa: B018

    def with_spans() -> None:
        for trajectory in usable:
            transform.rows(trajectory)

    times = {alone: [], with_spans: []}
    for _ in range(rounds):
        for work in times:
            times[work].append(seconds(work))
    per_row = {work: 1e6 * statistics.median(taken) / len(usable) for work, taken in times.items()}
    ratios = [b / a for a, b in zip(times[alone], times[with_spans])]
    return {
        "trajectories": len(usable),
        "characters": sum(map(len, texts)) // len(usable),
        "tokenising_us": round(per_row[alone], 1),
        "with_spans_us": round(per_row[with_spans], 1),
        "ratio": round(per_row[with_spans] / per_row[alone], 3),
        "ratio_p10": round(sorted(ratios)[len(ratios) // 10], 3),
        "ratio_p90": round(sorted(ratios)[len(ratios) * 9 // 10], 3),
    }


def seconds(work: Callable[[], None]) -> float:
    """CPU time, on one thread: what else the machine does is left out."""
    start = time.process_time()
    work()
    return time.process_time() - start


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    return {
        "python": platform.python_version(),
        "tokenizers": version("tokenizers"),
        "cpu": platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
    }


def table(report: dict) -> str:
    lines = [
        f"{'source':18} {'style':6} {'rows':>5} {'chars':>6} "
        f"{'alone us':>9} {'spans us':>9} ratio (p10..p90)"
    ]
    for r in report["results"]:
        if not r["trajectories"]:
            lines.append(
                f"{r['source']:18} {r['style']:6}     0 (no row can be rendered in this style)"
            )
            continue
        lines.append(
            f"{r['source']:18} {r['style']:6} {r['trajectories']:5} {r['characters']:6} "
            f"{r['tokenising_us']:9} {r['with_spans_us']:9} "
            f"{r['ratio']:5.3f} ({r['ratio_p10']}..{r['ratio_p90']})"
        )
    return "\n".join([*lines, f"limit: {report['limit']}"])


if __name__ == "__main__":
    main()
