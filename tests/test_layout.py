"""Imports point one way, and what must stay light stays light. Sources are read, not imported."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sad_components"

#: From the top down. Units of one layer do not import each other. The loss lies below data and
#: models: batches and decoders speak its types, and it knows tensors and span kinds only.
LAYERS = [
    {"recipes", "cli", "demo", "viewer", "report", "pruning", "doctor"},
    {"lm_harness"},
    {"evaluation"},
    {"export"},
    {"training"},
    {"data", "models", "envs"},
    {"formats", "loss"},
    {"trajectory", "_tune_plugin"},
    {"spans", "_lm_eval_plugin"},
    {"_module_hook"},
]
RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}
#: Leaves that use no other part of the package.
STANDARD_LIBRARY_ONLY = ["__init__.py", "cli.py", "spans.py", "trajectory.py"]
STANDARD_LIBRARY_ONLY += ["_tune_plugin.py", "_lm_eval_plugin.py", "_module_hook.py"]
SOURCES = sorted(PACKAGE.rglob("*.py")) + sorted((ROOT / "recipes").glob("*.py"))


def imported_names(file: Path) -> set[str]:
    """Dotted names of all modules that ``file`` imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide the direction"
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def unit_of(file: Path) -> str:
    """The part of the project a source belongs to: ``loss``, ``spans``, ``recipes``, ..."""
    if file.parent == ROOT / "recipes":
        return "recipes"
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("file", SOURCES, ids=relative)
def test_imports_point_down(file):
    here = unit_of(file)
    for name in imported_names(file):
        assert name.split(".")[0] not in {"recipes", "tests", "configs"}, f"imports {name}"
        unit = name.split(".")[1] if name.startswith("sad_components.") else here
        if unit in (here, "__version__") or here not in RANK:
            continue
        assert unit in RANK, f"{unit} has no layer: add it to LAYERS"
        assert RANK[here] < RANK[unit], f"{here} imports {unit}, which is not below it"


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
def test_leaves_import_the_standard_library_only(name):
    module_level = ast.parse((PACKAGE / name).read_text(encoding="utf-8")).body
    for node in module_level:
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = (
                [node.module]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
            for module in modules:
                top = module.split(".")[0]
                assert top == "sad_components" or top in sys.stdlib_module_names, module


def test_every_unit_has_a_layer():
    units = {unit_of(file) for file in SOURCES} - {"__init__", "_tune_plugin"}
    assert units <= set(RANK), f"add to LAYERS: {units - set(RANK)}"


def test_loss_knows_no_tokenizer():
    for file in (PACKAGE / "loss").rglob("*.py"):
        assert not {n for n in imported_names(file) if "tokenizer" in n.lower()}, relative(file)


def test_recipes_configs_and_tests_are_no_packages():
    for folder in ("recipes", "configs", "tests"):
        assert not list((ROOT / folder).rglob("__init__.py")), f"{folder} would be installed"


def test_every_folder_with_code_is_a_package():
    folders = {file.parent for file in PACKAGE.rglob("*.py")}
    missing = [relative(folder) for folder in folders if not (folder / "__init__.py").is_file()]
    assert not missing, "a wheel would leave these out"
