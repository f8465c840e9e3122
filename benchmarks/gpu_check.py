"""What runs on this machine's GPU, how fast, and how near to the CPU: one table in ten minutes.

    make gpu-check
    python benchmarks/gpu_check.py --only fp8_rowwise two_ranks
    python benchmarks/gpu_check.py --device cpu      # rows that a CPU can run, on tiny models

Every row runs in a process of its own, with a time limit: one that crashes, hangs or fails is a
row of the table, and the others follow. docs/gpu_check.md says what the columns mean. The exit code
is 1 if a row fails, 2 if there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve()
#: GPUs with less memory (GB) get the smaller models.
_LARGE = 24
_HEADER = ("check", "result", "difference (limit)", "tokens/s", "GB (estimated)", "seconds", "")
_WIDTHS = (24, 8, 20, 9, 14, 7, 0)


@dataclass
class Row:
    """What became of a check.

    Args:
        name: of the check.
        result: ``ok``, ``FAIL``, ``too slow`` or ``not here``.
        seconds: that its process took.
        figures: what it reported: ``difference``, ``limit``, ``tokens_per_s``, ``memory_gb``,
            ``estimated_gb``, ``note``.
        reason: why it is not ok.
    """

    name: str
    result: str
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    def cells(self) -> tuple[str, ...]:
        """For the table."""
        f = self.figures
        near = f"{f['difference']:.1e} ({f['limit']:.0e})" if "difference" in f else ""
        speed = f"{f['tokens_per_s']:,.0f}" if "tokens_per_s" in f else ""
        memory = f"{f['memory_gb']:.1f} ({f['estimated_gb']:.1f})" if "memory_gb" in f else ""
        said = "; ".join(filter(None, (f.get("note", ""), self.reason)))
        return (self.name, self.result, near, speed, memory, f"{self.seconds:.0f}", said)


#: What a check that is ended has to end its own processes.
_PATIENCE_S = 40


def run_row(name: str, command: list[str], folder: Path, limit_s: float) -> Row:
    """Runs a check as a process in a folder of its own, and ends it after ``limit_s``.

    Args:
        name: of the check.
        command: writes ``figures.json`` there.
        folder: is made.
        limit_s: seconds.
    """
    folder.mkdir()
    begun = time.monotonic()
    with open(folder / "output.txt", "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
            # torchrun ends its processes, which have sessions of their own, when it is asked to
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE_S)
            _wait_for_group(process.pid, _PATIENCE_S)
        finally:
            with contextlib.suppress(ProcessLookupError):  # and what it had started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    row = Row(name, "ok", time.monotonic() - begun)
    file = folder / "figures.json"
    if file.is_file():
        row.figures = json.loads(file.read_text(encoding="utf-8"))
    failed, lacking = row.figures.pop("failed", None), row.figures.pop("lacking", None)
    far = row.figures.get("difference", 0) - row.figures.get("limit", 0)
    if code is None:
        row.result, row.reason = "too slow", f"ended after {limit_s:.0f} s"
    elif lacking:
        row.result, row.reason = "not here", lacking
    elif code or failed:
        row.result, row.reason = "FAIL", failed or _last_words(code, folder / "output.txt")
    elif not far <= 0:  # NaN is far
        row.result, row.reason = "FAIL", "too far from the CPU's result"
    elif not row.figures:
        row.result, row.reason = "FAIL", "nothing was reported"
    return row


def _wait_for_group(group: int, most_s: float) -> None:
    """Until no process is left in a group, or time is up."""
    end = time.monotonic() + most_s
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(0.1)


def _last_words(code: int, output: Path) -> str:
    lines = output.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"{ended}: {last:.200}"


def child(name: str, device: str, size: str) -> None:
    """A check's side: runs it in the current folder, and writes down what it reports at once."""
    sys.path.insert(0, str(HERE.parent))
    import gpu_rows

    figures: dict[str, Any] = {}

    def report(**values: Any) -> None:
        figures.update(values)
        aside = Path("figures.json.part")
        aside.write_text(json.dumps(figures), encoding="utf-8")
        aside.replace("figures.json")

    machine = gpu_rows.Machine(device, size)
    try:
        if name == "prepare":
            gpu_rows.prepare(machine)
            report(note="models are written")
        else:
            gpu_rows.ROWS[name](machine, report)
    except gpu_rows.NotHere as missing:
        report(lacking=str(missing))
    except Exception as error:  # anything that a row runs into is its result
        traceback.print_exc()
        report(failed=f"{type(error).__name__}: {' '.join(str(error).split()):.300}")


def describe(device: str, size: str) -> list[str]:
    """For people: the hardware, versions and what speed is measured on."""
    lines = [f"torch {torch.__version__}, CUDA {torch.version.cuda}"]
    if device == "cuda":
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            lines.append(
                f"cuda:{index}: {found.name}, {found.total_memory / 1e9:.0f} GB, compute "
                f"capability {found.major}.{found.minor}"
            )
    else:
        lines.append("device cpu: no GPU is checked; figures say that the rows work, nothing more")
    lines.append(f"speed and memory: {size} models (docs/gpu_check.md)")
    return lines


def line_of(cells: tuple[str, ...]) -> str:
    """A line of the table."""
    return "  ".join(c.ljust(w) for c, w in zip(cells, _WIDTHS)).rstrip()


def check(
    names: list[str], device: str, size: str, minutes: float, limit_s: float, root: Path
) -> list[Row]:
    """Runs checks one by one and prints each as it ends; what time does not reach is not run."""
    print(line_of(_HEADER), flush=True)
    end = time.monotonic() + 60 * minutes
    rows: list[Row] = []
    for name in ["prepare", *names]:
        left = end - time.monotonic()
        if left <= 0:
            row = Row(name, "not run", reason=f"{minutes:g} minutes are over: --only {name}")
        else:
            command = [sys.executable, str(HERE), "--row", name]
            command += ["--device", device, "--size", size]
            row = run_row(name, command, root / name.replace("prepare", "models"), limit_s)
        rows.append(row)
        print(line_of(row.cells()), flush=True)
    return rows


def main() -> int:
    """Prints the table; 0 if no row fails, 1 if one does, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these rows")
    parser.add_argument("--size", choices=("tiny", "small", "large"), help="of the timed models")
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no row after (10)")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds a row may take (180)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        child(args.row, args.device, args.size)
        return 0
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            f"no GPU: torch {torch.__version__} sees no CUDA device here, so nothing was checked. "
            "Install a CUDA build of torch and a driver; --device cpu runs the rows that a CPU can "
            "run."
        )
        return 2
    sys.path.insert(0, str(HERE.parent))
    import gpu_rows

    unknown = set(args.only or ()) - set(gpu_rows.ROWS)
    if unknown:
        parser.error(f"no row {', '.join(sorted(unknown))}; rows: {', '.join(gpu_rows.ROWS)}")
    size = args.size or _size(args.device)
    header = describe(args.device, size)
    print("\n".join(header))
    with tempfile.TemporaryDirectory() as folder:
        names = args.only or list(gpu_rows.ROWS)
        given = (names, args.device, size, args.minutes, args.limit)
        rows = check(*given, Path(folder))
    if args.json:
        content = {"machine": header, "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    counts = {result: sum(row.result == result for row in rows) for result in _RESULTS}
    print(", ".join(f"{count} {result}" for result, count in counts.items() if count))
    return 1 if counts["FAIL"] or counts["too slow"] else 0


_RESULTS = ("ok", "FAIL", "too slow", "not here", "not run")


def _size(device: str) -> str:
    if device == "cpu":
        return "tiny"
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    return "large" if memory >= _LARGE - 1 else "small"


if __name__ == "__main__":
    sys.exit(main())
