"""Names for the files that come with the package, usable wherever a config takes a path."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

SHIPPED = "shipped:"


def resolve_source(source: str) -> Path:
    """The trajectory file a config means: a path, or ``shipped:household/train``.

    Raises:
        FileNotFoundError: no such file (the shipped ones are listed).
    """
    if str(source).startswith(SHIPPED):
        return _shipped(str(source), "*/trajectories/*.jsonl")
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"no trajectory file {str(source)!r} (looked in {Path.cwd()}); give the path of a "
            "JSONL file, or shipped:household/train for the one in the package"
        )
    return path


def resolve_folder(source: str | Path) -> Path:
    """The tokenizer folder a config means: a path, or ``shipped:household/tokenizer``.

    Raises:
        FileNotFoundError: no shipped folder of that name.
    """
    if str(source).startswith(SHIPPED):
        return _shipped(str(source), "*/tokenizer")
    return Path(source).expanduser()


def _shipped(source: str, pattern: str) -> Path:
    root = Path(str(resources.files("sad_components"))) / "envs"
    found = {}
    for path in sorted(root.glob(pattern)):
        env = path.relative_to(root).parts[0]
        found[f"{SHIPPED}{env}/{path.stem}"] = path
    if source not in found:
        raise FileNotFoundError(f"nothing shipped under {source!r}; there is: {', '.join(found)}")
    return found[source]
