"""The memory limit of a plan: so many times the model's own weights, or so many bytes in all."""

from __future__ import annotations

from dataclasses import dataclass

from tunebook._envfields import MEMORY_FORMS, parsed_memory
from tunebook.errors import UsageError

#: Weights in all layouts together may take so many times what the unattached model's do.
LIMIT_RATIO = 1.1
#: Weights beside those that are released may take this share of the memory that is free.
FREE_SHARE = 0.5
#: All prepared weights may, while both layouts live, before the originals are released.
BOTH_SHARE = 0.9


@dataclass(frozen=True)
class MemoryLimit:
    """So many times the unattached model's weights (`ratio`), or so many `bytes`; the other one is 0."""

    ratio: float = LIMIT_RATIO
    bytes: int = 0

    @classmethod
    def parse(cls, text: str, what: str = "memory_limit") -> MemoryLimit:
        """``1.1x``, ``3GiB``. Raises UsageError that names `what` for anything else, and for less than the model."""
        try:
            return cls(*parsed_memory(text))
        except ValueError:
            raise UsageError(f"{what} {text!r} cannot be used; it is {MEMORY_FORMS}") from None

    def __str__(self) -> str:
        return f"{self.ratio:g}x" if self.ratio else f"{self.bytes}B"

    def beside(self, model_bytes: int) -> int:
        """How many bytes may be held beside the unattached model's. Raises UsageError where not even those fit."""
        total = int(self.ratio * model_bytes) if self.ratio else self.bytes
        if total < model_bytes:
            raise UsageError(
                f"the memory limit {self} is less than the model's own weights, {model_bytes} bytes; "
                f"give {MEMORY_FORMS.partition(',')[0]}, or at least that size"
            )
        return total - model_bytes
