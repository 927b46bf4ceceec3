"""A figure of a fault scenario: what was counted, what it has to be, and whether it is. Shared by soak.py and tests/faults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of `make faults`: ``name value``; `goal` says in words what is asked for, `met` whether it was reached."""

    name: str
    value: float | int | str
    goal: str
    met: bool

    def __str__(self) -> str:
        value = f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)
        return f"{self.name} {value}"
