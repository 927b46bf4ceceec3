"""How a broken promise is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class ContractError(AssertionError):
    """A promise is broken: one line with the thing, what is wrong with it, and the remedy."""


class UnavailableError(Exception):
    """A runner cannot run on this machine, so that nothing can be said of it; the text is its own reason."""


def broken(thing: str, what: str, remedy: str) -> NoReturn:
    """Raise the `ContractError` of one line."""
    raise ContractError(" ".join(f"{thing}: {what}; {remedy}".split()))


@contextmanager
def no_exception(thing: str, what: str, remedy: str) -> Iterator[None]:
    """Whatever is raised in the block breaks a promise: `what` is followed by the exception."""
    try:
        yield
    except ContractError:
        raise
    except Exception as error:
        raise ContractError(" ".join(f"{thing}: {what} {type(error).__name__}: {error}; {remedy}".split())) from error
