"""Environments by name: ``household``, ``hotpotqa``, .., or the dotted path of anybody's own."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sad_components.envs.protocol import Environment

#: Name -> where the class is; nothing is imported before an environment is made.
ENVIRONMENTS = {
    "household": "sad_components.envs.household.environment.HouseholdEnvironment",
    "alfworld": "sad_components.envs.household.alfworld_data.AlfWorldEnvironment",
    "hotpotqa": "sad_components.envs.hotpotqa.HotpotQAEnvironment",
    "webshop": "sad_components.envs.webshop.WebShopEnvironment",
    "webshop_server": "sad_components.envs.webshop.WebShopServerEnvironment",
    "textworld": "sad_components.envs.textworld_games.TextWorldEnvironment",
    "scienceworld": "sad_components.envs.scienceworld.ScienceWorldEnvironment",
}


def make_environment(name: str, **options: Any) -> Environment:
    """The environment of that name.

    Args:
        name: a key of ``ENVIRONMENTS``, or a dotted path to an :class:`Environment`, or to a class
            with gym's ``reset`` and ``step`` (see ``sad_components.envs.gym_adapter``).
        options: its keyword arguments.

    Raises:
        ImportError: what it needs is not installed (the message says what to install).
        ValueError: no such name or path, or options that it does not take.
    """
    path = ENVIRONMENTS.get(name, name)
    module, _, attribute = path.rpartition(".")
    if not module:
        raise ValueError(
            f"no environment {name!r}; there are {', '.join(ENVIRONMENTS)}, or give the dotted "
            "path of a class"
        )
    try:
        found = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise  # the module exists, and something that it needs does not
        raise ValueError(f"no environment {name!r}: there is no module {error.name!r}") from error
    except AttributeError as error:
        raise ValueError(f"no environment {name!r}: {module} has no {attribute!r}") from error
    if isinstance(found, type) and issubclass(found, Environment):
        return _called(found, name, options)
    from sad_components.envs.gym_adapter import GymEnvironment

    limits = {key: options.pop(key) for key in ("max_steps", "instructions") if key in options}
    return GymEnvironment(_called(found, name, options), name=name, **limits)


def _called(make: Any, name: str, options: dict[str, Any]) -> Any:
    try:
        return make(**options)
    except TypeError as error:
        raise ValueError(f"environment {name!r} cannot be made of {options}: {error}") from error
