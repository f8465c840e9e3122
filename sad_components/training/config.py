"""Configs: keys that nobody reads are errors, and components are built with clear messages."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
from collections.abc import Iterable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torchtune import config as tune_config

from sad_components import _tune_plugin


class ConfigError(ValueError):
    """A config that cannot be run; says which key, what was found and what would do."""


def check_keys(
    cfg: DictConfig,
    allowed: Iterable[str],
    where: str = "the config",
    required: Iterable[str] = (),
) -> None:
    """Raises :class:`ConfigError` for a key that nobody reads (naming the nearest) or that lacks.

    Args:
        cfg: the mapping to check.
        allowed: keys that somebody reads.
        where: the mapping's name, for messages.
        required: keys that must be there and not null.
    """
    known = sorted(allowed)
    unknown = [str(key) for key in cfg if key not in known]
    if unknown:
        hints = "; ".join(f"{key!r}{_nearest(key, known)}" for key in unknown)
        raise ConfigError(
            f"nobody reads these keys of {where}: {hints}. Known keys: {', '.join(known)}"
        )
    missing = [key for key in required if is_null(cfg.get(key))]
    if missing:
        raise ConfigError(f"{where} needs these keys: {', '.join(missing)}; they are missing")


def check_counts(cfg: DictConfig, keys: Iterable[str], least: int = 1) -> None:
    """Raises :class:`ConfigError` unless each of ``keys`` that is there is an integer.

    Args:
        cfg: the mapping to check.
        keys: what to check; a key that is missing has its default and passes.
        least: smallest value allowed.
    """
    for key in keys:
        value = cfg.get(key, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{key} must be an integer >= {least}; got {value!r}")


def check_flags(cfg: DictConfig, keys: Iterable[str]) -> None:
    """Raises :class:`ConfigError` unless each of ``keys`` that is there is true or false."""
    for key in keys:
        if not isinstance(cfg.get(key, False), bool):
            raise ConfigError(f"{key} must be true or false; got {cfg[key]!r}")


def is_null(node: Any) -> bool:
    """Whether a node names nothing: null, or ``{_component_: null}``.

    The second is what torchtune's command line makes of ``teacher=null`` for a component.
    """
    return node is None or (OmegaConf.is_dict(node) and node.get("_component_", node) is None)


def build(node: DictConfig | None, where: str, *args: Any, **kwargs: Any) -> Any:
    """The component that a config node names; ``None`` for a null node.

    Args:
        node: mapping with ``_component_`` and the component's keyword arguments.
        where: the node's name in the config, for messages.
        args: positional arguments in front.
        kwargs: keyword arguments that the recipe adds.

    Raises:
        ConfigError: no ``_component_``, a path that does not import, an argument that the
            component does not take (the nearest is named), or one that it needs and does not get.
    """
    if is_null(node):
        return None
    checked_component(node, where, *args, **kwargs)
    return tune_config.instantiate(node, *args, **kwargs)


def checked_component(node: DictConfig, where: str, *args: Any, **kwargs: Any) -> Any:
    """The class or function that a node names, not called; it takes the node's arguments.

    Args and Raises: as for :func:`build`.
    """
    if not OmegaConf.is_dict(node) or "_component_" not in node:
        raise ConfigError(f"{where} needs a _component_ (a dotted path); got {node!r:.120}")
    component = _import(node["_component_"], where)
    _check_arguments(component, node, args, kwargs, where)
    return component


def call(component: Any, node: DictConfig | None, where: str, *args: Any, **kwargs: Any) -> Any:
    """``component`` called with the keys of a node that needs no ``_component_``.

    Args:
        component: class or function.
        node: its keyword arguments; null or missing for none.
        where: the node's name in the config, for messages.
        args: positional arguments in front.
        kwargs: keyword arguments that the recipe adds.

    Raises:
        ConfigError: a key that the component does not take (the nearest is named), or one that
            it needs and does not get.
    """
    given = node if node is not None else {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where} is a mapping of keys; got {given!r:.120}")
    _check_arguments(component, given, args, kwargs, where)
    return component(*args, **given, **kwargs)


def _import(path: str, where: str) -> Any:
    module, _, name = str(path).rpartition(".")
    if not module:
        raise ConfigError(f"{where}._component_ is a dotted path; got {path!r}")
    tried = module
    while tried:
        try:
            found = import_module(tried)
            break
        except ModuleNotFoundError as error:
            if error.name is None or not (
                tried == error.name or tried.startswith(error.name + ".")
            ):
                raise ConfigError(
                    f"{where}._component_ {path!r} does not import: {error} (install what it needs)"
                ) from error
            tried = tried.rpartition(".")[0]
    else:
        raise ConfigError(f"{where}._component_ {path!r} does not import: no module {module!r}")
    for part in f"{module}.{name}"[len(tried) + 1 :].split("."):
        if not hasattr(found, part):
            near = _nearest(part, [n for n in dir(found) if not n.startswith("_")])
            raise ConfigError(
                f"{where}._component_ {path!r} does not import: {tried} has no {part!r}{near}"
            )
        found = getattr(found, part)
    return found


def _check_arguments(
    component: Any, node: Mapping[str, Any], args: tuple, added: dict, where: str
) -> None:
    try:
        signature = inspect.signature(component)
    except (TypeError, ValueError):
        return  # a builtin without a signature: it checks its own arguments
    parameters = signature.parameters
    given = [str(k) for k in node if k != "_component_"]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [] if takes_any else [k for k in given if k not in parameters]
    name = node.get("_component_") or component.__name__
    if unknown:
        known = [k for k in parameters if k not in added and k != "self"]
        hints = "; ".join(f"{k!r}{_nearest(k, known)}" for k in unknown)
        raise ConfigError(f"{where}: {name} takes no {hints}. It takes: {', '.join(known)}")
    try:
        signature.bind(*args, **dict.fromkeys([*given, *added]))
    except TypeError as error:
        raise ConfigError(f"{where}: {name} cannot be called with these keys: {error}") from None


def _nearest(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def load_recipe(name: str) -> ModuleType:
    """A recipe's file as a module: it says which keys it reads, and can be run.

    Args:
        name: of the file, without ``.py``.

    Raises:
        ConfigError: no recipe has this name.
    """
    file = _tune_plugin.project_folder("recipes") / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"sad_recipe_{name}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ConfigError(f"the header names the recipe {name!r}, which does not exist")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
