"""What a timing depends on: hard fields choose the book, soft fields are recorded and a difference is shown."""

from __future__ import annotations

import hashlib
import json

from tunebook.records._base import Record


class Environment(Record, frozen=True, kw_only=True):
    """`hard`: device, ISA or compute capability, cores, cache sizes, threads, dtype support. `soft`: versions, load, clocks.

    Two timings may be compared, and a verdict may be served, only where the hard fields are equal.
    """

    hard: dict[str, str]
    soft: dict[str, str] = {}

    def __post_init__(self) -> None:
        if not self.hard:
            raise ValueError("an environment needs at least one hard field")

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of the SHA-256 over the hard fields, in an order of their own."""
        text = json.dumps(self.hard, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def differences(self, other: Environment) -> list[str]:
        """Name each hard field in which two environments differ, as ``field: this ≠ that``."""
        return _differences(self.hard, other.hard)

    def soft_differences(self, other: Environment) -> list[str]:
        """The same for the soft fields."""
        return _differences(self.soft, other.soft)


def _differences(mine: dict[str, str], theirs: dict[str, str]) -> list[str]:
    names = sorted({*mine, *theirs})
    return [f"{n}: {mine.get(n, '-')} ≠ {theirs.get(n, '-')}" for n in names if mine.get(n) != theirs.get(n)]
