"""Two books of other tuners compared: whose winner flipped, what only one of them has, and in what they differ otherwise."""

from __future__ import annotations

from collections.abc import Mapping

from tunebook.errors import UsageError
from tunebook.interop._format import Entry, ForeignBook
from tunebook.records import Record


class Flip(Record, frozen=True, kw_only=True):
    """One problem for which the two chose differently. `ratio` is A's time over B's, where the format has both."""

    key: str
    op: str
    problem: str
    before: str
    after: str
    before_s: float | None = None
    after_s: float | None = None
    ratio: float | None = None


class FactChange(Record, frozen=True, kw_only=True):
    """One thing that the two tell differently of their environments; empty: not told."""

    name: str
    before: str = ""
    after: str = ""


class ForeignSide(Record, frozen=True, kw_only=True):
    """One of the two."""

    path: str
    format: str
    entries: int
    unreadable: int = 0


class ForeignDiff(Record, frozen=True, kw_only=True):
    """What changed from A to B. These files keep no samples, so that whether a flip matters cannot be told from them."""

    before: ForeignSide
    after: ForeignSide
    same: int
    flipped: tuple[Flip, ...] = ()
    only_before: tuple[str, ...] = ()
    only_after: tuple[str, ...] = ()
    facts: tuple[FactChange, ...] = ()

    @property
    def different(self) -> bool:
        """Whether anything would be served differently: a time or a version that differs alone is no difference."""
        return bool(self.flipped or self.only_before or self.only_after)


def diff(before: ForeignBook, after: ForeignBook) -> ForeignDiff:
    """Compare by key. Raises ``UsageError`` for books of different formats that have no problem in common."""
    both = [key for key in before.entries if key in after.entries]
    if before.format != after.format and not both:
        raise UsageError(
            f"{before.path} is of {before.format} and {after.path} of {after.format}, and no problem is in both; "
            "compare two of one tuner"
        )
    flipped = [
        _flip(before.entries[key], after.entries[key])
        for key in both
        if before.entries[key].choice != after.entries[key].choice
    ]
    return ForeignDiff(
        before=_side(before),
        after=_side(after),
        same=len(both) - len(flipped),
        flipped=tuple(sorted(flipped, key=lambda flip: flip.key)),
        only_before=tuple(sorted(before.entries.keys() - after.entries.keys())),
        only_after=tuple(sorted(after.entries.keys() - before.entries.keys())),
        facts=_facts(before.facts, after.facts),
    )


def _flip(a: Entry, b: Entry) -> Flip:
    return Flip(
        key=a.key,
        op=a.op,
        problem=a.problem,
        before=a.choice,
        after=b.choice,
        before_s=a.seconds,
        after_s=b.seconds,
        ratio=a.seconds / b.seconds if a.seconds is not None and b.seconds else None,
    )


def _side(book: ForeignBook) -> ForeignSide:
    return ForeignSide(path=str(book.path), format=book.format, entries=len(book.entries), unreadable=len(book.misses))


def _facts(a: Mapping[str, str], b: Mapping[str, str]) -> tuple[FactChange, ...]:
    return tuple(
        FactChange(name=name, before=a.get(name, ""), after=b.get(name, ""))
        for name in dict.fromkeys((*a, *b))
        if a.get(name) != b.get(name)
    )
