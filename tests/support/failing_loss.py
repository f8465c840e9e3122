"""A structured loss that fails on purpose, in one process at one of its calls."""

from __future__ import annotations

import os
import resource
import signal
from typing import Any

from sad_components.loss import HiddenRows, LossOutput, StructuredKDLoss


class FailingLoss(StructuredKDLoss):
    """``StructuredKDLoss``, but for what happens at some calls.

    Args:
        what: ``raise`` an error, ``kill`` the process, ``term`` (send it SIGTERM, and go on),
            ``full`` (files can grow no more), or make the loss ``nan``, or only its ``gradient``.
        calls: at which ones, counted from 1 in every process.
        rank: in which process.
        kwargs: as for ``StructuredKDLoss``.
    """

    def __init__(self, what: str, calls: list[int], rank: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._what, self._calls, self._done = what, calls, 0
        self._here = int(os.environ.get("RANK", "0")) == rank

    def from_hidden(self, student: HiddenRows, *args: Any, **kwargs: Any) -> LossOutput:
        output = super().from_hidden(student, *args, **kwargs)
        if student.hidden_ND.grad_fn is None:  # memory is being estimated: nothing is trained
            return output
        self._done += 1
        return self._fail(output) if self._here and self._done in self._calls else output

    def _fail(self, output: LossOutput) -> LossOutput:
        if self._what == "raise":
            raise ValueError("this row cannot be learnt from")
        if self._what in ("kill", "term"):
            number = signal.SIGKILL if self._what == "kill" else signal.SIGTERM
            os.kill(os.getpid(), number)
        if self._what == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, resource.RLIM_INFINITY))
        if self._what == "nan":
            output.loss = output.loss * float("nan")
        if self._what == "gradient":
            output.loss.register_hook(lambda gradient: gradient * float("inf"))
        return output
