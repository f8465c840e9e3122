"""SIGTERM and SIGINT: a run that is asked to stop ends after its step, and can go on later."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: A launcher passes a signal on that its processes may have got already: seconds in which one of
#: several processes takes a further one for the same.
_SAME_SIGNAL_S = 3.0


class Interrupt:
    """Notes the first signal; a second one ends the process at once.

    Args:
        launched: whether a launcher (torchrun) passes signals on, too.

    Attributes:
        received: the signal that this process got; None so far.
    """

    def __init__(self, *, launched: bool = False) -> None:
        self.received: int | None = None
        self._same_within = _SAME_SIGNAL_S if launched else 0.0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Takes the signals; call in the main thread. Until then they do what they always do."""
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def restore(self) -> None:
        """Gives the signals back to whoever had them; call in the main thread."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @property
    def exit_code(self) -> int:
        """128 + the signal; of a process that only heard of another's, SIGTERM's."""
        return 128 + (self.received or signal.SIGTERM)

    @property
    def name(self) -> str:
        """The signal's name, for messages."""
        return signal.Signals(self.exit_code - 128).name

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._since = number, now
        elif now - self._since >= self._same_within:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
