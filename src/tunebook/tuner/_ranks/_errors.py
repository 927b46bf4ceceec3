"""Errors that all ranks find at once."""

from __future__ import annotations

from tunebook.errors import UsageError


class ContradictionError(UsageError):
    """Ranks were started with what contradicts each other. Each of them raises this: nobody has to be told."""
