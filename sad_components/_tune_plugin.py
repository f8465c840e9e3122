"""Makes the project's recipes and configs part of torchtune's command line, ``tune``.

torch calls :func:`install` while ``import torch`` runs (entry point group ``torch.backends``).
It puts a hook into ``sys.meta_path`` (``_module_hook``) that waits for
``torchtune._recipe_registry`` and adds our entries to it. Nothing is read from disk before that, an
exception never leaves this module, and only the standard library is used: a failure here would
break ``import torch`` for everybody.
``docs/plugin.md`` describes how names are found.
"""

from __future__ import annotations

import ast
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_REGISTRY = "torchtune._recipe_registry"
_PACKAGE = Path(__file__).resolve().parent

#: Module-level constant by which a recipe says that it runs in one process only.
_DISTRIBUTED_FLAG = "SUPPORTS_DISTRIBUTED"
_RECIPE_HEADER = re.compile(r"#\s*recipe:\s*(\w+)\s*$")
#: Ways to write a recipe's path that torchtune would take for a module and fail to import.
_PATH_PREFIXES = ("recipes/", "./", "../", "/")


def install() -> None:
    """Registers recipes and configs with torchtune now, or as soon as its registry loads.

    The model ``sad`` becomes known to lm-eval in the same way (``_lm_eval_plugin``). Never raises:
    with ``SAD_PLUGIN_DEBUG=1`` a failure is a warning, else it is silent.
    """
    try:
        from sad_components import _lm_eval_plugin
        from sad_components._module_hook import after_loading

        after_loading(_REGISTRY, _register, _report)
        _lm_eval_plugin.install(_report)
    except Exception as error:
        _report(error)


class _Name(str):
    """A name that ``tune ls`` prints once and that also answers to the file's path."""

    path: str

    def __new__(cls, name: str, path: str) -> _Name:
        self = super().__new__(cls, name)
        self.path = path
        return self

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) is True or self.path == other

    __hash__ = str.__hash__


def _register(registry: Any) -> None:
    """Appends our recipes, then the file on the command line, to torchtune's list."""
    command = sys.argv[1:2]
    # `tune cp` has to bring the installed file: a copy cannot be the source of itself.
    overrides = None if command == ["cp"] else Path.cwd()
    entries = [*_installed_recipes(registry, overrides)]
    known = [recipe.name for recipe in registry._ALL_RECIPES]
    registry._ALL_RECIPES.extend(entry for entry in entries if entry.name not in known)
    if command == ["run"]:
        registry._ALL_RECIPES.extend(_recipe_files(registry, sys.argv[2:]))
    elif command == ["validate"]:
        _replace_config_names(registry, sys.argv)


def _installed_recipes(registry: Any, overrides: Path | None) -> Iterator[Any]:
    """One ``Recipe`` per file in the recipes folder, with the configs whose header names it."""
    configs = _configs_by_recipe(registry, overrides)
    for installed in sorted(project_folder("recipes").glob("[!_]*.py")):
        path = f"recipes/{installed.name}"
        file = _first_file(overrides, [path, installed.name], installed)
        yield registry.Recipe(
            name=_Name(installed.stem, path),
            file_path=str(file),
            configs=configs.get(installed.stem, []),
            supports_distributed=_supports_distributed(file),
        )


def _configs_by_recipe(registry: Any, overrides: Path | None) -> dict[str, list[Any]]:
    """Recipe name -> its ``Config`` entries; a YAML without the header belongs to no recipe."""
    folder = project_folder("configs")
    configs: dict[str, list[Any]] = {}
    for installed in sorted(folder.rglob("*.yaml")):
        recipe = recipe_of(installed)
        if recipe is not None:
            relative = installed.relative_to(folder).as_posix()
            path = f"configs/{relative}"
            file = _first_file(overrides, [path, relative], installed)
            name = _Name(relative.removesuffix(".yaml"), path)
            configs.setdefault(recipe, []).append(registry.Config(name=name, file_path=str(file)))
    return configs


def project_folder(kind: str) -> Path:
    """``recipes`` or ``configs``: inside the package in a wheel, beside it in a checkout."""
    packaged = _PACKAGE / f"_{kind}"
    if packaged.is_dir():
        return packaged
    checkout = _PACKAGE.parent
    # Without this check site-packages/recipes, which is torchtune's own, could be taken for ours.
    if (checkout / "pyproject.toml").is_file():
        return checkout / kind
    raise FileNotFoundError(f"neither {packaged} nor a checkout around {_PACKAGE} exists")


def _first_file(folder: Path | None, candidates: list[str], installed: Path) -> Path:
    """The first of the candidates that is a file in ``folder``, else the installed file."""
    copies = [] if folder is None else [folder / candidate for candidate in candidates]
    return next((copy for copy in copies if copy.is_file()), installed)


def recipe_of(config: Path) -> str | None:
    """The recipe named by a line ``# recipe: <name>`` in the comments that open the file."""
    with config.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip() and not line.startswith("#"):
                return None
            if found := _RECIPE_HEADER.match(line):
                return found.group(1)
    return None


def _supports_distributed(recipe: Path) -> bool:
    """False if the recipe's source says ``SUPPORTS_DISTRIBUTED = False``; it is not imported."""
    try:
        statements = ast.parse(recipe.read_text(encoding="utf-8")).body
    except SyntaxError:  # an edited copy: `tune run` shows the error, the other entries stay
        return True
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
            if _DISTRIBUTED_FLAG in names:
                return bool(statement.value.value)
    return True


def _recipe_files(registry: Any, arguments: list[str]) -> Iterator[Any]:
    """Recipes given to ``tune run`` as a path that torchtune cannot run by itself.

    torchtune imports a path as a module, so that ``recipes/mine.py`` ends in its own package
    ``recipes`` and ``./mine.py`` and absolute paths in nothing.
    """
    known = [recipe.name for recipe in registry._ALL_RECIPES]
    for argument in arguments:
        is_path = argument.endswith(".py") and argument.startswith(_PATH_PREFIXES)
        if is_path and argument not in known and os.path.isfile(argument):
            file = Path(argument).resolve()
            yield registry.Recipe(argument, str(file), [], _supports_distributed(file))


def _replace_config_names(registry: Any, argv: list[str]) -> None:
    """Replaces, in place, a config's name by its file: ``tune validate`` knows no names."""
    configs = [config for recipe in registry._ALL_RECIPES for config in recipe.configs]
    for i, argument in enumerate(argv[2:], start=2):
        ours = (c.file_path for c in configs if isinstance(c.name, _Name) and c.name == argument)
        argv[i] = next(ours, argument)


def _report(error: Exception) -> None:
    if os.environ.get("SAD_PLUGIN_DEBUG") == "1":
        warnings.warn(
            f"torchtune-sad could not register its recipes or its lm-eval model: {error!r}",
            stacklevel=3,
        )
