"""Processes that take turns, so that a busy machine slows every method of a benchmark alike."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]


class Worker:
    """The process of one method: an interpreter on a script that calls :func:`serve`.

    Args:
        name: of the method.
        command: the script and its arguments.
        python: the interpreter; this one by default.
    """

    def __init__(self, name: str, command: list[str], python: str = sys.executable) -> None:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [python, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        self.name = name

    def ask(self, question: Any) -> Any:
        """What the process answers.

        Raises:
            RuntimeError: it ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
            return json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError) as ended:
            raise RuntimeError(
                f"the process of method {self.name!r} ended; its error stands above"
            ) from ended

    def close(self) -> None:
        """Ends the process, also in the middle of an answer."""
        self._process.kill()
        self._process.wait()


def serve(start: Callable[[], Callable[[Any], Any]]) -> None:
    """A worker's side: answers every line of standard input.

    Args:
        start: prepares and returns the function that answers. What it or a library prints goes to
            standard error.
    """
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    answer = start()
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=replies)


def hardware() -> dict[str, Any]:
    """Processor, cores, threads and instruction set."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
    }
