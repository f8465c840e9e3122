"""Something to do as soon as another package's module has loaded, or now if it has.

Standard library only: ``_tune_plugin`` uses it while ``import torch`` runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from typing import Any

#: Does something with the module that was loaded.
Action = Callable[[Any], None]
#: Is told of an exception that must not reach whoever imports the module.
Report = Callable[[Exception], None]


def after_loading(name: str, action: Action, report: Report) -> None:
    """Calls ``action(module)`` now, or once, when the module ``name`` has been loaded.

    Args:
        name: the module's dotted name; it is not imported.
        action: its exceptions go to ``report``.
        report: see ``action``.
    """
    if name in sys.modules:
        _act(action, sys.modules[name], report)
    elif not any(isinstance(f, ModuleHook) and f.name == name for f in sys.meta_path):
        sys.meta_path.insert(0, ModuleHook(name, action, report))


class ModuleHook(MetaPathFinder):
    """Finds one module as the other finders do, and acts on it once it is loaded."""

    def __init__(self, name: str, action: Action, report: Report) -> None:
        self.name, self._action, self._report = name, action, report

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """The module's spec with our step after loading, or None: the other finders go on."""
        if fullname != self.name:
            return None
        try:
            specs = (f.find_spec(fullname, path, target) for f in sys.meta_path if f is not self)
            spec = next(spec for spec in specs if spec is not None)
            self._act_after_loading(spec.loader)
            return spec
        except Exception as error:
            self._report(error)
            return None

    def _act_after_loading(self, loader: Any) -> None:
        load = loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            if self in sys.meta_path:  # else the module is loaded a second time
                sys.meta_path.remove(self)
                _act(self._action, module, self._report)

        loader.exec_module = exec_module


def _act(action: Action, module: Any, report: Report) -> None:
    try:
        action(module)
    except Exception as error:
        report(error)
