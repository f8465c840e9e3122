"""Exported students: made, described by a manifest, read and run.

What runs them goes through :func:`load_exported`; the runtimes are imported when they are used.
"""

from sad_components.export.manifest import Manifest, is_export, read_manifest, write_manifest
from sad_components.export.student import ExportedStudent, load_exported

__all__ = [
    "ExportedStudent",
    "Manifest",
    "is_export",
    "load_exported",
    "read_manifest",
    "write_manifest",
]
