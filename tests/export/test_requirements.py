"""ExecuTorch is one documented command; who lacks it is told which."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from exports import needs_executorch

from sad_components.doctor.checks import Doctor
from sad_components.doctor.config_file import read_config
from sad_components.export import requirements

ROOT = Path(__file__).resolve().parents[2]


def checked(config: str, monkeypatch, tmp_path) -> dict:
    monkeypatch.chdir(tmp_path)
    return {check.name: check for check in Doctor(read_config(config)).checks()}


def test_one_command_everywhere():
    """The file that make installs, the command that errors print, and the page say the same."""
    lines = (ROOT / "executorch.txt").read_text().splitlines()
    listed = {line.split("==")[0] for line in lines if line and not line.startswith("#")}
    named = requirements.INSTALL.removeprefix("pip install --no-deps ").split()
    assert {name.split("==")[0] for name in named} == listed
    assert f"executorch=={requirements.EXECUTORCH}" in lines
    assert requirements.INSTALL in (ROOT / "docs" / "export.md").read_text()
    assert re.search(r"--no-deps -r executorch.txt", (ROOT / "Makefile").read_text())


@pytest.mark.parametrize("config", ["tiny/export_student", "household/evaluate_exported"])
def test_doctor_names_what_is_missing(config, monkeypatch, tmp_path):
    def lacking(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(requirements, "version", lacking)
    found = checked(config, monkeypatch, tmp_path)["executorch"]
    assert found.mark == "fail"
    assert "executorch is not installed" in found.lines
    assert found.lines[-1] == f"set it up with `{requirements.INSTALL}`"
    with pytest.raises(ImportError, match=re.escape(requirements.INSTALL)):
        requirements.require_executorch()


def test_another_version_is_named(monkeypatch):
    monkeypatch.setattr(requirements, "version", lambda package: "1.3.0")
    assert requirements.executorch_problems() == [
        "executorch is 1.3.0, but 1.4.1 is what was tested"
    ]


@needs_executorch
def test_doctor_is_content(monkeypatch, tmp_path):
    found = checked("tiny/export_student", monkeypatch, tmp_path)
    assert found["executorch"].mark == found["keys"].mark == "ok"
    assert "executorch" not in checked("tiny/evaluate_agent", monkeypatch, tmp_path)
