"""The base of every record: frozen, keyword-only, written without the fields that hold their default."""

from __future__ import annotations

import math
import re
from typing import Final

import msgspec

#: The version of everything tunebook writes. A reader refuses a newer one by name.
SCHEMA: Final = 1

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]*")


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A frozen value, validated at birth by its own ``__post_init__``; unknown fields of a newer minor writer are kept out."""


def check_seconds(what: str, value: float) -> None:
    """Raise ``ValueError`` unless `value` is a duration: not negative, and finite, or it could not be read back."""
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{what}: {value} is not a duration")


def check_name(what: str, value: str) -> None:
    """Raise ``ValueError`` unless `value` can stand in a key: a letter or ``_``, then letters, digits, ``_ . : -``."""
    if not NAME.fullmatch(value):
        raise ValueError(f"{what} {value!r} is not a name (a letter or _, then letters, digits or _ . : -)")
