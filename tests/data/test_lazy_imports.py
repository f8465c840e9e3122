"""Cutting text needs no torch: ``sad_components.data`` imports its names when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sad_components import data


def test_sad_spans_imports_no_torch(tmp_path):
    code = (
        "import sys; from sad_components.cli import main; main(['spans', sys.argv[1]]); "
        "print(sorted({'torch', 'datasets', 'transformers'} & set(sys.modules)))"
    )
    path = tmp_path / "one.jsonl"
    path.write_text('{"text": "Thought: t\\nAction: go\\nObservation: o\\nAction: stop\\n"}\n')
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_public_name_is_there():
    assert set(data.__all__) == set(data._MODULE_OF)
    for name in data.__all__:
        assert getattr(data, name).__name__ == name
        assert name in dir(data)
    with pytest.raises(AttributeError, match="has no attribute 'TrajectoryDatset'"):
        _ = data.TrajectoryDatset
