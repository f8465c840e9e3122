"""Loads a file that is no module of the package: a recipe or a benchmark."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load_module(relative: str) -> ModuleType:
    """The file at ``relative`` (to the repository) as a module, run anew."""
    path = ROOT / relative
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    # dataclasses, and classes named by their path, are looked up there
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
