"""What a user can mend is said in one line, without a traceback; and which process says it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

#: A launcher that looks this much later sees first which process ended by itself.
_LOOK_S = 1.0


@contextmanager
def explained(recipe: str) -> Iterator[None]:
    """Ends the process with one line for a user's error; ``SAD_DEBUG=1`` shows the traceback.

    Under torchrun the reason is also in the launcher's summary. A process that can not go on
    because another one ended says so, and gives the launcher the time to see which was the first.

    Args:
        recipe: name to put before the message.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        _tell_launcher(error)
        if os.environ.get("SAD_DEBUG") == "1":
            raise
        raise SystemExit(f"{_prefix(recipe)}: error: {error}") from None
    except RuntimeError as error:
        if not _lost_another(error):
            _tell_launcher(error)
            raise
        time.sleep(_LOOK_S)
        raise SystemExit(
            f"{_prefix(recipe)}: error: another process of this run ended, and none goes on "
            f"without it; its own message, or the launcher's, has the reason ({error})"
        ) from None


def _prefix(recipe: str) -> str:
    rank = os.environ.get("RANK")
    return recipe if rank is None else f"{recipe} (process {rank})"


def _tell_launcher(error: Exception) -> None:
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        get_error_handler().record_exception(error)


def _lost_another(error: RuntimeError) -> bool:
    """Whether it is the process group that failed, as it does when a member ends."""
    return isinstance(error, dist.DistError) or (dist.is_initialized() and "gloo" in str(error))
