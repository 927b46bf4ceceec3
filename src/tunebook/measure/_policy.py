"""The measuring policy: under which conditions a tactic is timed. It is part of a problem's key."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from tunebook.errors import UsageError


class Capturing(Protocol):
    """A device that can say why it does not capture calls."""

    def no_capture(self) -> str | None: ...


class MeasurementPolicy(Enum):
    """How the calls of a race run, which is how the model will run them.

    - ``EAGER``: one after the other, launched from Python.
    - ``CAPTURED``: as a graph that was recorded once (CUDA); what launching costs is then left out, as in a served graph.

    The two are two problems with two keys: a tactic that wins one may lose the other.
    """

    EAGER = "eager"
    CAPTURED = "captured"

    @classmethod
    def of(cls, asked: MeasurementPolicy | str, device: Capturing) -> MeasurementPolicy:
        """The policy of that name. Raises UsageError for another name, and for one that `device` cannot follow."""
        names = [policy.value for policy in cls]
        value = asked.value if isinstance(asked, cls) else asked
        if value not in names:
            raise UsageError(f"measurement policy {value!r} is none of {', '.join(names)}")
        refusal = device.no_capture() if value == cls.CAPTURED.value else None
        if refusal is not None:
            raise UsageError(f"measurement policy {value!r}: {refusal}; measure with {cls.EAGER.value!r} there")
        return cls(value)
