"""An exported student that plays and chats: its context holds a short conversation."""

from pathlib import Path

import pytest
from exports import facts, write_student

from sad_components.export.variants import Variant
from sad_components.export.writer import write_executorch


@pytest.fixture(scope="session")
def fp32_long(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("viewer")
    student = write_student(root / "student", num_hidden_layers=1, max_position_embeddings=1024)
    out = root / "fp32"
    out.mkdir()
    write_executorch(out, facts(student), Variant(), "fp32", prefill_tokens=64)
    return out
