"""Every test of a recipe runs in a folder of its own: outputs go to relative paths."""

import pytest


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
