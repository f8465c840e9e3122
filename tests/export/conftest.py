"""One student and its programs for all tests of a session: lowering takes many seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from exports import QUANTISED, facts, write_student

from sad_components.export.variants import Variant
from sad_components.export.writer import write_executorch


@pytest.fixture(scope="session")
def student(tmp_path_factory) -> Path:
    return write_student(tmp_path_factory.mktemp("student") / "student")


@pytest.fixture(scope="session")
def fp32(student, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fp32")
    write_executorch(folder, facts(student), Variant(), "fp32", max_seq_len=96, prefill_tokens=16)
    return folder


@pytest.fixture(scope="session")
def shallow(tmp_path_factory) -> Path:
    """A student of one layer: lowering a quantised one takes half a minute."""
    return write_student(tmp_path_factory.mktemp("shallow") / "student", num_hidden_layers=1)


@pytest.fixture(scope="session")
def quantised(shallow, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("8da4w")
    write_executorch(folder, facts(shallow), QUANTISED, "8da4w", max_seq_len=96, prefill_tokens=16)
    return folder
