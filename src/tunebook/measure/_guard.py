"""The memory guard: a tactic that states it needs more than the limit is refused before it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunebook.measure._check import Finding

#: Without a limit of the user's, one call may take this share of the memory that is free.
FREE_SHARE = 0.25


def memory_limit(free: int, asked_gb: float | None) -> int:
    """Bytes that one call of a tactic may need: what was asked for, else a quarter of what is free."""
    return int(asked_gb * 1e9) if asked_gb is not None else int(free * FREE_SHARE)


def refuse_for_memory(workspace: Callable[..., int] | None, args: tuple[Any, ...], limit: int) -> Finding | None:
    """The refusal of a tactic whose `workspace(*args)` is above `limit` bytes, or None."""
    if workspace is None:
        return None
    try:
        needed = int(workspace(*args))
    except Exception as error:  # noqa: BLE001 - a runner's own function; its failure is the finding
        return Finding("runtime", f"its workspace estimate failed: {type(error).__name__}: {error}", ran=False)
    if needed > limit:
        detail = f"needs {needed / 1e9:.2f} GB for one call, the limit is {limit / 1e9:.2f} GB"
        return Finding("memory", detail, ran=False)
    return None
