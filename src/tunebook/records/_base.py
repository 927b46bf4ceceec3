"""The base of every record: frozen, keyword-only, written without the fields that hold their default."""

from __future__ import annotations

import re
from typing import Final

import msgspec

#: The version of everything tunebook writes. A reader refuses a newer one by name.
SCHEMA: Final = 1

#: The largest count, size or number of bytes that a record takes: sums and products of them stay ordinary numbers.
LARGEST: Final = 2**53
#: The longest duration, in seconds: thirty million years.
LONGEST_S: Final = 1e15

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]*")


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A frozen value, validated at birth by its own ``__post_init__``; unknown fields of a newer minor writer are kept out."""


def check_seconds(what: str, value: float) -> None:
    """Raise ``ValueError`` unless `value` is a duration: not negative, and finite, or it could not be read back."""
    if not 0 <= value <= LONGEST_S:
        raise ValueError(f"{what}: {value} is not a duration")


def check_count(what: str, value: int) -> None:
    """Raise ``ValueError`` unless `value` is a count, a size or a number of bytes: from 0 to `LARGEST`."""
    if not 0 <= value <= LARGEST:
        raise ValueError(f"{what} is not a number from 0 to {LARGEST}")


def check_length(what: str, text: str, limit: int) -> None:
    """Raise ``ValueError`` for a text of more than `limit` characters, before anything takes it apart."""
    if len(text) > limit:
        raise ValueError(f"{what} of {len(text)} characters, more than the {limit} that are read")


def check_name(what: str, value: str) -> None:
    """Raise ``ValueError`` unless `value` can stand in a key: a letter or ``_``, then letters, digits, ``_ . : -``."""
    if not NAME.fullmatch(value):
        raise ValueError(f"{what} {value!r} is not a name (a letter or _, then letters, digits or _ . : -)")
