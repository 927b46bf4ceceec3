"""Which tactics are first run in a worker process."""

from __future__ import annotations

from enum import Enum

from tunebook.envs import envs
from tunebook.errors import UsageError


class Isolate(Enum):
    """Where a tactic's first run on a problem takes place: in a worker process, or in this one."""

    ALWAYS = "always"  #: each in the worker, also those that the cache knows to be right
    UNPROVEN = "unproven"  #: in the worker, but for those that passed before, of which the cache tells
    NEVER = "never"  #: each in this process

    @classmethod
    def of(cls, asked: Isolate | str | None, argument: str = "isolate=") -> Isolate:
        """What an argument says, else the variable TUNEBOOK_ISOLATE, else `UNPROVEN`. Raises UsageError for another word."""
        if isinstance(asked, Isolate):
            return asked
        word = envs.TUNEBOOK_ISOLATE.get() if asked is None else asked
        try:
            return cls(word)
        except ValueError:
            raise UsageError(f"{argument}{asked!r} is none of {', '.join(mode.value for mode in cls)}") from None
