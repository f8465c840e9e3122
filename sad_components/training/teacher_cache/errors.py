"""What goes wrong with a cache, as users see it."""

from __future__ import annotations


class CacheError(ValueError):
    """A cache that cannot be used: says which file or part, and what would mend it."""
