"""The kinds of environment variable: what text each accepts, and what value it makes of it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from tunebook._envvars import NONE, Common, Computed, D, EnvField

TRUE_WORDS = ("1", "true", "yes", "y", "on")
FALSE_WORDS = ("0", "false", "no", "n", "off")


class EnvBool(EnvField[bool, D]):
    kind = "boolean"

    def _accepts(self) -> str:
        return f"{'/'.join(TRUE_WORDS)} or {'/'.join(FALSE_WORDS)} in any case"

    def _parse(self, text: str) -> bool:
        word = text.lower()
        if word in TRUE_WORDS:
            return True
        if word in FALSE_WORDS:
            return False
        raise ValueError(text)

    def _render(self, value: bool) -> str:
        return str(value).lower()


class EnvInt(EnvField[int, D]):
    """A whole number in decimal digits, of at least `minimum`."""

    kind = "integer"

    def __init__(self, default: D | Computed[D], *, minimum: int | None = None, **common: Unpack[Common]) -> None:
        super().__init__(default, **common)
        self.minimum = minimum

    def _accepts(self) -> str:
        return "a whole number" + ("" if self.minimum is None else f" of at least {self.minimum}")

    def _parse(self, text: str) -> int:
        # int() alone would take "1_000" and digits of other scripts too: more than the message says.
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            raise ValueError(text)
        value = int(text)
        if self.minimum is not None and value < self.minimum:
            raise ValueError(text)
        return value


class EnvFloat(EnvField[float, D]):
    """A finite number, greater than `above`."""

    kind = "number"

    def __init__(self, default: D | Computed[D], *, above: float | None = None, **common: Unpack[Common]) -> None:
        super().__init__(default, **common)
        self.above = above

    def _accepts(self) -> str:
        return "a number" + ("" if self.above is None else f" greater than {self.above:g}")

    def _parse(self, text: str) -> float:
        if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
            raise ValueError(text)
        value = float(text)
        if not math.isfinite(value) or (self.above is not None and value <= self.above):
            raise ValueError(text)
        return value

    def _render(self, value: float) -> str:
        return str(value).removesuffix(".0")


class EnvStr(EnvField[str, D]):
    """A text; with `choices` one of them, in any case, and the choice as declared is what is read."""

    kind = "text"

    def __init__(self, default: D | Computed[D], *, choices: Sequence[str] = (), **common: Unpack[Common]) -> None:
        super().__init__(default, **common)
        self.choices = tuple(choices)

    def _accepts(self) -> str:
        return f"one of {', '.join(self.choices)} in any case" if self.choices else "any text"

    def _parse(self, text: str) -> str:
        if not self.choices:
            return text
        for choice in self.choices:
            if choice.lower() == text.lower():
                return choice
        raise ValueError(text)


class EnvPath(EnvField[Path, D]):
    """A path; a leading `~` or `~user` is expanded."""

    kind = "path"

    def _accepts(self) -> str:
        return "a path, in which a leading ~ is the home folder"

    def _parse(self, text: str) -> Path:
        try:
            return Path(text).expanduser()
        except RuntimeError as error:  # the user after the ~ is unknown
            raise ValueError(str(error)) from error


class EnvTuple(EnvField[tuple[str, ...], D]):
    """Texts between commas; empty ones are dropped, and `none` is the empty tuple."""

    kind = "list"

    def _accepts(self) -> str:
        return f"texts separated by commas, or {NONE} for an empty list"

    def _parse(self, text: str) -> tuple[str, ...]:
        return () if text.lower() == NONE else tuple(part.strip() for part in text.split(",") if part.strip())

    def _render(self, value: tuple[str, ...]) -> str:
        text = ",".join(value) if value else NONE
        if isinstance(value, str) or self._parse(text) != tuple(value):
            raise ValueError("an item is empty, or has a comma or blanks around it")
        return text


class EnvPaths(EnvField[tuple[Path, ...], D]):
    """Paths between the platform's separators for paths, as in PATH; empty ones are dropped, and `none` is the empty tuple.

    A leading `~` or `~user` of each is expanded.
    """

    kind = "paths"

    def _accepts(self) -> str:
        return f"paths separated as in PATH (by a colon; on Windows a semicolon), each with ~ for the home folder, or {NONE}"

    def _parse(self, text: str) -> tuple[Path, ...]:
        if text.lower() == NONE:
            return ()
        try:
            return tuple(Path(part.strip()).expanduser() for part in text.split(os.pathsep) if part.strip())
        except RuntimeError as error:  # the user after a ~ is unknown
            raise ValueError(str(error)) from error

    def _render(self, value: tuple[Path, ...]) -> str:
        if isinstance(value, str | Path):
            raise ValueError("one path, where several are meant")
        text = os.pathsep.join(map(str, value)) if value else NONE
        if self._parse(text) != tuple(map(Path, value)):
            raise ValueError("a path is empty, or has a separator or blanks around it")
        return text


MEMORY_FORMS = "a multiple of the model's own weights of at least 1, such as 1.1x, or a size such as 3GiB or 800MB"
_UNITS = {"B": 1} | {
    f"{letter}{i}B": (1024 if i else 1000) ** power for power, letter in enumerate("KMGT", 1) for i in ("", "I")
}


def parsed_memory(text: str) -> tuple[float, int]:
    """``1.1x`` as (1.1, 0), ``3GiB`` as (0.0, 3221225472). Raises ValueError for anything else, and for less than 1x."""
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]+)?)\s?(x|[KMGT]?i?B)", text.strip(), re.IGNORECASE)
    if not found:
        raise ValueError(text)
    number, unit = float(found[1]), found[2]
    if unit.lower() == "x":
        if number < 1:
            raise ValueError(text)
        return number, 0
    size = _UNITS.get(unit.upper(), 0)
    if size == 0 or number * size < 1:
        raise ValueError(text)
    return 0.0, int(number * size)


class EnvMemory(EnvField[str, D]):
    """A limit of memory: so many times the model's weights, or so many bytes. `parsed_memory` reads its parts."""

    kind = "memory limit"

    def _accepts(self) -> str:
        return MEMORY_FORMS

    def _parse(self, text: str) -> str:
        parsed_memory(text)
        return text

    def _render(self, value: str) -> str:
        return value
