"""Students that the tests of one file share."""

from __future__ import annotations

from pathlib import Path

import pytest
from lm_students import make_student


@pytest.fixture(scope="session")
def student(tmp_path_factory) -> Path:
    """Of 256 tokens."""
    return make_student("smollm2", tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="session")
def long_student(tmp_path_factory) -> Path:
    """Of 2048 tokens: every household trajectory fits."""
    return make_student("smollm2", tmp_path_factory.mktemp("long_student"), 2048)
