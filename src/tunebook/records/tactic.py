"""A tactic: one concrete choice inside a runner, named by its parameters, never by an index."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from urllib.parse import quote, unquote

from tunebook.records._base import Record, check_length, check_name

Scalar = bool | int | float | str

_NAME = re.compile(r"(?P<runner>[^\[\]]+)(?:\[(?P<params>.*)\])?", re.DOTALL)
_SAFE = " ()./:+-*"
#: The longest name that is read: real ones have some hundred characters.
MAX_NAME = 4096
#: Longer names than this are parsed anew each time: remembering is for those that recur.
_REMEMBERED = 256


class Tactic(Record, frozen=True, kw_only=True):
    """``onednn[batch_hint=16]``: the runner, and the value of each of its parameters in a fixed order.

    A string parameter that could be read as a number or a boolean is quoted in the name, so that `parse` gives the same
    tactic back. Two tactics are the same where their names are: ``1``, ``1.0`` and ``true`` are three values, though Python
    holds them for one.
    """

    runner: str
    params: tuple[tuple[str, Scalar], ...] = ()

    def __post_init__(self) -> None:
        check_name("runner", self.runner)
        for name, value in self.params:
            check_name("parameter", name)
            if not isinstance(value, bool | int | float | str):
                raise ValueError(f"{self.runner}: parameter {name}={value!r} is no number, string or boolean")
            if isinstance(value, float) and value != value:
                raise ValueError(f"{self.runner}: parameter {name} is not a number")
            if isinstance(value, int) and abs(value) >> 128:
                raise ValueError(f"{self.runner}: parameter {name} takes more than 128 bits")
        if len({name for name, _ in self.params}) != len(self.params):
            raise ValueError(f"{self.runner}: a parameter occurs twice")

        size = len(self.runner) + sum(len(n) + (len(v) if isinstance(v, str) else 4) for n, v in self.params)
        if 12 * size > MAX_NAME:  # a character takes up to twelve in the name, though few do
            check_length("a tactic with a name", self.name, MAX_NAME)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tactic):
            return NotImplemented
        if self.runner != other.runner or self.params != other.params:
            return False
        pairs = zip(self.params, other.params, strict=True)
        return all(type(a) is type(b) is not float for (_, a), (_, b) in pairs) or self.name == other.name

    def __hash__(self) -> int:
        return hash((self.runner, self.params))

    @property
    def name(self) -> str:
        """The self-describing name. `parse` gives the same tactic back."""
        if not self.params:
            return self.runner
        return f"{self.runner}[{','.join(f'{name}={_write(value)}' for name, value in self.params)}]"

    def __str__(self) -> str:
        return self.name

    @property
    def kwargs(self) -> dict[str, Scalar]:
        """The parameters as the keyword arguments of the runner's function."""
        return dict(self.params)

    @classmethod
    def parse(cls, name: str) -> Tactic:
        """Read a name back. Raises ``ValueError`` that shows the part that is wrong."""
        return _remembered(name) if len(name) <= _REMEMBERED else _parse(name)


@lru_cache(maxsize=4096)
def _remembered(name: str) -> Tactic:
    """Names recur: a cache of ten thousand verdicts knows a few dozen."""
    return _parse(name)


def _parse(name: str) -> Tactic:
    check_length("a tactic with a name", name, MAX_NAME)
    found = _NAME.fullmatch(name)
    if not found:
        raise ValueError(f"tactic {name!r} is not runner[parameter=value,…]")
    params = []
    for item in (found["params"] or "").split(","):
        if item:
            key, equals, value = item.partition("=")
            if not equals:
                raise ValueError(f"tactic {name!r}: {item!r} is not parameter=value")
            params.append((key, _read(value)))
    return Tactic(runner=found["runner"], params=tuple(params))


#: The tactic that runs untuned: the model's own implementation. Always in the race, and the correctness reference.
DEFAULT = Tactic(runner="default")


def _write(value: Scalar) -> str:
    if isinstance(value, str):
        quoted = quote(value, safe=_SAFE)
        return quoted if _read(quoted) == value and not quoted.startswith("'") else f"'{quoted}'"
    return json.dumps(value)


def _read(text: str) -> Scalar:
    if len(text) >= 2 and text[0] == text[-1] == "'":
        return unquote(text[1:-1])
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return unquote(text)
    return value if isinstance(value, bool | int | float) else unquote(text)
