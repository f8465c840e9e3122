"""What a user can mend is said in one line, without a traceback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def explained(recipe: str) -> Iterator[None]:
    """Ends the process with one line for a user's error; ``SAD_DEBUG=1`` shows the traceback.

    Args:
        recipe: name to put before the message.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("SAD_DEBUG") == "1":
            raise
        raise SystemExit(f"{recipe}: error: {error}") from None
