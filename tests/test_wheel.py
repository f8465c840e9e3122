"""The wheel and the sdist hold everything, in the right place."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILT_FROM = ["pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "README.md"]
BUILT_FROM += ["Makefile", "constraints.txt"]
FOLDERS = ["sad_components", "recipes", "configs", "tests", "docs"]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[set[str], set[str]]:
    """Names in the wheel, and in the sdist without its top folder, built from a clean copy."""
    source = tmp_path_factory.mktemp("source")
    for name in BUILT_FROM:
        shutil.copy(ROOT / name, source)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", source / "dist", source],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    (sdist,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    return set(zipfile.ZipFile(wheel).namelist()), packed


def files_under(folder: str) -> set[str]:
    """All files in a folder of the repository but compiled ones, relative to the root."""
    files = (f for f in (ROOT / folder).rglob("*") if f.is_file() and f.suffix != ".pyc")
    return {file.relative_to(ROOT).as_posix() for file in files}


def test_the_wheel_installs_one_top_level_package(built):
    wheel, _ = built
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sad_components"}


def test_the_wheel_holds_code_data_recipes_and_configs(built):
    wheel, _ = built
    expected = files_under("sad_components")
    for folder in ("recipes", "configs"):
        suffix = ".py" if folder == "recipes" else ".yaml"
        expected |= {
            f"sad_components/_{name}" for name in files_under(folder) if name.endswith(suffix)
        }
    assert not expected - wheel


def test_the_wheel_declares_the_entry_points(built):
    wheel, _ = built
    assert any(name.endswith(".dist-info/entry_points.txt") for name in wheel)
    assert "sad_components/_tune_plugin.py" in wheel


def test_the_sdist_is_complete(built):
    _, sdist = built
    expected = set(BUILT_FROM).union(*(files_under(folder) for folder in FOLDERS))
    assert not expected - sdist
