"""Transcript formats behind one registry: by name, or found from evidence."""

from __future__ import annotations

from sad_components.formats.base import Dialect, Evidence, Format
from sad_components.formats.registry import detect, get_format, list_formats, register_format

__all__ = [
    "Dialect",
    "Evidence",
    "Format",
    "detect",
    "get_format",
    "list_formats",
    "register_format",
]
