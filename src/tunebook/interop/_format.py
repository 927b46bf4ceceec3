"""What every format of another tuner is here: how it is told, read and written, and what a book of it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from tunebook.records import Record
from tunebook.records._base import check_seconds
from tunebook.store import Miss

#: How much of a file survives being read and written again.
#:
#: - ``bytes``: what the other tuner itself wrote comes back byte for byte; `Format.lost` says what does not of a file that
#:   something else wrote.
#: - ``values``: every value comes back, not the white space or the order around it.
#: - ``lossy``: something is lost, and `Format.lost` says what.
#: - ``read only``: it is not written.
Fidelity = Literal["bytes", "values", "lossy", "read only"]


class Loss(NamedTuple):
    """Something that writing loses.

    `source` says out of what: "" a book of the format itself, "run" a run of ours, the name of another format, or "others".
    """

    what: str
    source: str = ""

    def __str__(self) -> str:
        return f"out of {_SOURCES.get(self.source, self.source)}: {self.what}" if self.source else self.what


_SOURCES = {"run": "a run", "others": "other formats"}


class Trial(Record, frozen=True, kw_only=True):
    """One configuration that the other tuner timed or refused.

    `tactic` is canonical text: a name, or sorted field=value pairs. `reason` says why there is no time, in the format's
    own words.
    """

    tactic: str
    seconds: float | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.seconds is not None:
            check_seconds("seconds", self.seconds)


class Entry(Record, frozen=True, kw_only=True):
    """One problem and what was chosen for it.

    `key` is unique in its book and the same in every file that has the problem: two books are compared by it. `problem`
    is the sizes and types as the format has them, in readable text; `choice` is canonical text, as in a `Trial`.
    """

    key: str
    op: str
    problem: str
    choice: str
    seconds: float | None = None
    trials: tuple[Trial, ...] = ()

    def __post_init__(self) -> None:
        if self.seconds is not None:
            check_seconds("seconds", self.seconds)


@dataclass(frozen=True, kw_only=True)
class ForeignBook:
    """What one file or directory of another tuner holds.

    `format` is the `Format.name`; `facts` is the environment as far as the format tells it (versions, device); `misses`
    names what of it cannot be read; `content` is the format's own form of it all, for writing it back.
    """

    path: Path
    format: str
    facts: Mapping[str, str]
    entries: Mapping[str, Entry]
    misses: tuple[Miss, ...] = ()
    content: Any = None


class Format(Protocol):
    """A file format of another tuner. One module each, listed in `tunebook.interop.FORMATS`."""

    @property
    def name(self) -> str:
        """The word for ``convert --to``, for instance ``flashinfer-v1``."""

    @property
    def title(self) -> str:
        """What people call it."""

    @property
    def fidelity(self) -> Fidelity:
        """Of a round trip: read, then written."""

    @property
    def lost(self) -> tuple[Loss, ...]:
        """What a round trip, or a conversion into this format, loses."""

    def detects(self, path: Path, head: bytes) -> bool:
        """Whether this is such a file: by its content, and its name where the name carries meaning.

        `head` is its first 64 KiB at most, ``b""`` for a directory. Never raises.
        """

    def read(self, path: Path) -> ForeignBook:
        """Read it. Raises ``StoreError``, in one line that names the place (line, key), where it is malformed."""

    def write(self, book: ForeignBook, path: Path) -> None:
        """Write a book in this format. Raises ``UsageError`` where the book has not what the format needs.

        A file is replaced, all of it or nothing. Raises ``StoreError`` where it cannot be written.
        """


def losses(kind: Format, source: str) -> tuple[Loss, ...]:
    """What is lost of a `source`, a format's name or "run", that is written as `kind`."""
    if source == kind.name:
        return tuple(loss for loss in kind.lost if not loss.source)
    named = tuple(loss for loss in kind.lost if loss.source == source)
    return named or tuple(loss for loss in kind.lost if loss.source == "others")


@runtime_checkable
class Merges(Protocol):
    """A `Format` of which two books can be made one."""

    def merge(self, first: ForeignBook, second: ForeignBook) -> ForeignBook:
        """The entries of both; where both have a key, the first's. `content` is such that `Format.write` writes it.

        Raises ``UsageError`` where the two do not belong together: what was tuned for another device or version.
        """
