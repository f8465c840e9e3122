"""What a user can mend is one line."""

from __future__ import annotations

import pytest

from sad_components.training.errors import explained


@pytest.mark.parametrize("kind", [ValueError, OSError, ImportError])
def test_a_users_error_ends_the_process_with_its_words(kind):
    with pytest.raises(SystemExit, match=r"^collect: error: pip install it$"), explained("collect"):
        raise kind("pip install it")


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(TypeError), explained("collect"):
        raise TypeError("ours")
