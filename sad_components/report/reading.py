"""JSON of any origin, read within bounds: what is broken or too big is skipped and counted."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

#: Bytes of a JSON file, and of a line of a JSONL file, that are read.
MAX_FILE = 64 * 2**20
MAX_LINE = 8 * 2**20
#: No figure of a run is as large; an axis could not show it.
_TOO_LARGE = 1e18


class Unreadable(ValueError):
    """A file that holds nothing to report; says which and why."""


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        Unreadable: it is missing, too big, no JSON, or no object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE:
            raise Unreadable(f"{path.name} has {size:,} bytes; at most {MAX_FILE:,} are read")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise Unreadable(f"{path.name} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(f"{path.name} is no readable JSON: {type(error).__name__}") from None
    except json.JSONDecodeError as error:
        raise Unreadable(f"{path.name} is no JSON: {error.msg} in line {error.lineno}") from None
    except ValueError as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"{path.name} is no readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise Unreadable(f"{path.name} holds a {type(value).__name__}, not a JSON object")
    return value


def read_lines(path: Path, problems: Counter[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a JSONL file, one a line.

    Args:
        path: the file.
        problems: counts the lines that were skipped, by what is wrong with them.

    Raises:
        OSError: the file cannot be opened.
    """
    with open(path, "rb") as handle:
        while line := handle.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                while line and not line.endswith(b"\n"):
                    line = handle.readline(MAX_LINE)
                problems[f"longer than {MAX_LINE:,} bytes"] += 1
                continue
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                problems["not JSON, or cut short"] += 1
                continue
            if isinstance(value, dict):
                yield value
            else:
                problems["no JSON object"] += 1


def number(value: Any) -> float | None:
    """A number that an axis can show, as float; None for anything else (NaN, infinite, text)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        as_float = float(value)
    except OverflowError:
        return None
    return as_float if math.isfinite(as_float) and abs(as_float) < _TOO_LARGE else None


def count(value: Any) -> int | None:
    """A whole number that is not negative; None for anything else."""
    found = number(value)
    return int(found) if found is not None and found >= 0 and found == int(found) else None


def dig(value: Any, *keys: str) -> Any:
    """``value[key][key]..``; None where a key is missing or there is no object to look in."""
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def mapping(value: Any) -> dict[str, Any]:
    """``value`` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}
