"""A config by path or by name, the commands in its header, and the keys its recipe reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from sad_components import _tune_plugin
from sad_components.training.config import ConfigError


@dataclass
class ConfigFile:
    """A config as its recipe would get it.

    Args:
        path: of the file.
        cfg: its content, overrides applied.
        recipe: name of the recipe in its header.
        commands: command lines in its header.
    """

    path: Path
    cfg: DictConfig
    recipe: str
    commands: list[str]

    def download_of(self, folder: str | Path) -> str:
        """The header's command that makes ``folder``, or general advice."""
        names = {str(folder), Path(folder).name}
        named = [c for c in self.commands if names & set(c.split())]
        if str(folder).startswith("demo/"):
            named = named or ["sad fetch-demo"]
        return f"run `{named[0]}`" if named else "make or download it first"


def read_config(name: str, overrides: Sequence[str] = ()) -> ConfigFile:
    """The config at a path, or with a name that ``tune ls`` shows.

    Args:
        name: path or name.
        overrides: ``key=value`` each.

    Raises:
        ValueError: no such config, no YAML mapping, or an override without ``=``.
    """
    installed = _tune_plugin.project_folder("configs") / f"{name.removesuffix('.yaml')}.yaml"
    path = next((p for p in (Path(name), installed) if p.is_file()), None)
    if path is None:
        raise ConfigError(f"no config {name!r}: give a path, or a name that `tune ls` shows")
    wrong = [item for item in overrides if "=" not in item]
    if wrong:
        raise ConfigError(f"overrides are key=value; got {', '.join(wrong)}")
    cfg = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
    header = _header(path.read_text(encoding="utf-8"))
    commands = [line.strip() for line in header if line.startswith("   ")]
    recipe = _tune_plugin.recipe_of(path) or "structured_kd"
    return ConfigFile(path, cfg, recipe, commands)


def _header(text: str) -> list[str]:
    """The comment lines that open the file, without their ``#``."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#"))
    return lines
