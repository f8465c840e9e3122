"""``sad lm-eval ..``: lm-eval's command line, to which our model and our tasks are known."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sad_components import _lm_eval_plugin

USAGE = """\
usage: sad lm-eval [--tasks-path] <lm-eval's own arguments>

Runs lm-eval's command line with this project's tasks beside its own, and the model "sad".

  sad lm-eval run --model sad --model_args pretrained=runs/mine/student --tasks sad_span_ppl
  sad lm-eval ls tasks
  sad lm-eval --tasks-path    prints the folder of the tasks, for lm-eval's --include_path
"""


def main(argv: Sequence[str]) -> int:
    """The exit code: 0, or 2 without arguments.

    Raises:
        SystemExit: after ``--help``, and by lm-eval where its arguments are wrong.
    """
    if not argv or list(argv) in (["-h"], ["--help"]):
        print(USAGE)
        if argv:
            raise SystemExit(0)
        return 2
    if list(argv) == ["--tasks-path"]:
        print(_lm_eval_plugin.TASKS)
        return 0
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _lm_eval_plugin.install(_raise)
    _know_our_tasks()
    from lm_eval.__main__ import cli_evaluate

    before, sys.argv = sys.argv, ["lm-eval", *argv]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
    return 0


def _know_our_tasks() -> None:
    """Every ``TaskManager`` that this process makes reads our folder, too."""
    import lm_eval.tasks

    known = lm_eval.tasks.TaskManager
    if known.__module__ == __name__:
        return

    class TaskManager(known):  # type: ignore[misc, valid-type]
        """lm-eval's, with our folder before the user's own."""

        def __init__(
            self,
            verbosity: str | None = None,
            include_path: str | Path | Sequence[str | Path] | None = None,
            include_defaults: bool = True,
            metadata: dict[str, Any] | None = None,
        ) -> None:
            given = [include_path] if isinstance(include_path, str | Path) else include_path or []
            paths = [str(_lm_eval_plugin.TASKS), *given]
            super().__init__(verbosity, paths, include_defaults, metadata)

    TaskManager.__module__ = __name__
    lm_eval.tasks.TaskManager = TaskManager


def _raise(error: Exception) -> None:
    raise error
