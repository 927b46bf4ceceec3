"""A problem: what is tuned. Its key is readable, versioned by the schema, and reads back to the same problem."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TypeVar
from urllib.parse import quote, unquote

from tunebook.records._base import LARGEST, Record, check_length, check_name

#: How a bucket's size relates to the sizes that fall into it.
SIGNS = {"up": "≤", "down": "≥", "exact": "="}
_ROUNDING = {sign: rounding for rounding, sign in SIGNS.items()}
_DIM = re.compile(r"(?P<name>[^≤≥=@]+)(?P<sign>[≤≥=])(?P<size>[0-9]+)(?:@(?P<rule>.+))?")
_SAFE = " ()[]{}.:+-*/"
#: The longest key that is read: real ones have some hundred characters.
MAX_KEY = 16384
#: Longer parts than this are parsed anew each time: remembering is for those that recur.
_REMEMBERED = 512


class Dim(Record, frozen=True, kw_only=True):
    """A dynamic dimension, rounded to its bucket: ``M≤16`` stands for every M that `rule` rounds to 16.

    `rule` names the rounding function ("pow2" by default): two rules that give 16 cover different sizes, so the rule is
    part of the key and is spelt out when it is not the default.
    """

    name: str
    size: int
    rounding: str = "up"
    rule: str = "pow2"

    def __post_init__(self) -> None:
        if self.rounding not in SIGNS:
            raise ValueError(f"rounding {self.rounding!r} is none of {', '.join(SIGNS)}")
        if not 0 <= self.size <= LARGEST:
            raise ValueError(f"dimension {self.name} has a size that is not from 0 to {LARGEST}")
        if not self.name or not self.rule:
            raise ValueError("a dimension needs a name and a rule")

    def __str__(self) -> str:
        rule = "" if self.rule == _default_rule(self.rounding) else f"@{_quote(self.rule)}"
        return f"{_quote(self.name)}{SIGNS[self.rounding]}{self.size}{rule}"


class Problem(Record, frozen=True, kw_only=True):
    """An op with its static attributes, dtypes and bucketed dimensions: ``experts|E=32,K=8,H=1024,I=512|bf16|M≤16``.

    `policy` says under which conditions it is timed ("eager" by default); another one is another problem.
    """

    op: str
    attrs: tuple[tuple[str, str], ...] = ()
    dtypes: tuple[str, ...] = ()
    dims: tuple[Dim, ...] = ()
    policy: str = "eager"

    def __post_init__(self) -> None:
        check_name("op", self.op)
        check_name("policy", self.policy)
        for name, _ in self.attrs:
            if not name:
                raise ValueError(f"{self.op}: an attribute needs a name")
        size = sum(len(name) + len(value) + 1 for name, value in self.attrs) + sum(len(d.name) + 3 for d in self.dims)
        if 12 * (size + sum(map(len, self.dtypes))) > MAX_KEY:  # a character takes up to twelve in the key
            check_length("a problem key", self.key, MAX_KEY)
        names = [name for name, _ in self.attrs] + [dim.name for dim in self.dims]
        if len(set(names)) != len(names):
            raise ValueError(f"{self.op}: a name occurs twice in {', '.join(names)}")

    @property
    def family(self) -> str:
        """The key without its dimensions: what the buckets of one layer shape share."""
        attrs = ",".join(f"{_quote(name)}={_quote(value)}" for name, value in self.attrs)
        return "|".join((self.op, attrs, ",".join(_quote(dtype) for dtype in self.dtypes)))

    @property
    def key(self) -> str:
        """The readable key. `parse` gives the same problem back."""
        key = f"{self.family}|{','.join(map(str, self.dims))}"
        return key if self.policy == "eager" else f"{key}|{self.policy}"

    def __str__(self) -> str:
        return self.key

    @classmethod
    def parse(cls, key: str) -> Problem:
        """Read a key back. Raises ``ValueError`` that names the part that is wrong."""
        return _problem(key)

    def differences(self, other: Problem) -> list[str]:
        """Name each field in which two problems differ, as ``field: this ≠ that``."""
        named = [("op", self.op, other.op), ("policy", self.policy, other.policy)]
        named.append(("dtypes", ",".join(self.dtypes), ",".join(other.dtypes)))
        mine, theirs = dict(self.attrs), dict(other.attrs)
        named += [(name, mine.get(name, "-"), theirs.get(name, "-")) for name in {**mine, **theirs}]
        ours, their_dims = {d.name: str(d) for d in self.dims}, {d.name: str(d) for d in other.dims}
        named += [(name, ours.get(name, "-"), their_dims.get(name, "-")) for name in {**ours, **their_dims}]
        return [f"{name}: {a} ≠ {b}" for name, a, b in named if a != b]


def _default_rule(rounding: str) -> str:
    """The rule that a key does not spell out."""
    return "exact" if rounding == "exact" else "pow2"


def _quote(text: str) -> str:
    return quote(text, safe=_SAFE)


class _BadPartError(ValueError):
    """A part of a key that is none; `parse` adds the key."""


_P = TypeVar("_P")


def _recurring(parse: Callable[[str], _P]) -> Callable[[str], _P]:
    """Keys recur, in the lines of a run, and so do their parts: the layers of a model share their buckets, and the buckets of a
    layer everything else."""
    remembered = lru_cache(maxsize=1024)(parse)
    return lambda text: remembered(text) if len(text) <= _REMEMBERED else parse(text)


@_recurring
def _problem(key: str) -> Problem:
    check_length("a problem key", key, MAX_KEY)
    parts = key.split("|")
    if len(parts) not in (4, 5):
        raise ValueError(f"problem key {key!r} has {len(parts)} parts, not op|attributes|dtypes|dimensions")
    op, attrs, dtypes, dims = parts[:4]
    try:
        return Problem(
            op=op,
            attrs=_attrs(attrs),
            dtypes=_dtypes(dtypes),
            dims=_dims(dims),
            policy=parts[4] if len(parts) == 5 else "eager",
        )
    except _BadPartError as error:
        raise ValueError(f"problem key {key!r}: {error}") from None


@_recurring
def _attrs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple(_pairs(text))


@_recurring
def _dtypes(text: str) -> tuple[str, ...]:
    return tuple(unquote(dtype) for dtype in text.split(",") if dtype)


@_recurring
def _dims(text: str) -> tuple[Dim, ...]:
    return tuple(_dim(dim) for dim in text.split(",") if dim)


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for item in text.split(",") if text else ():
        name, equals, value = item.partition("=")
        if not equals:
            raise _BadPartError(f"attribute {item!r} is not name=value")
        yield unquote(name), unquote(value)


def _dim(text: str) -> Dim:
    found = _DIM.fullmatch(text)
    if not found:
        raise _BadPartError(f"dimension {text!r} is not name, one of ≤ ≥ =, size")
    return Dim(
        name=unquote(found["name"]),
        size=int(found["size"]),
        rounding=_ROUNDING[found["sign"]],
        rule=unquote(found["rule"]) if found["rule"] else _default_rule(_ROUNDING[found["sign"]]),
    )
