"""The books of other tuners: told by their content, read, compared, merged, and written back. One module a format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tunebook.errors import UsageError
from tunebook.interop import (
    _history,
    _merge,
    aiter,
    flashinfer_v1,
    flashinfer_v2,
    fused_moe,
    helion,
    kernel_tuner,
    sglang,
    t4,
    triton_cache,
    trtllm,
    tunableop,
)
from tunebook.interop._diff import FactChange, Flip, ForeignDiff, ForeignSide, diff
from tunebook.interop._format import Entry, Fidelity, ForeignBook, Format, Loss, Merges, Trial, losses
from tunebook.interop._history import HistoryEntry
from tunebook.interop._merge import Merged, write
from tunebook.interop._reading import head_of
from tunebook.store import Run

#: Every format, in the order in which a file is asked for: the more telling first.
FORMATS: tuple[Format, ...] = (
    flashinfer_v2.FORMAT,
    sglang.FORMAT,
    fused_moe.VLLM,
    fused_moe.SGLANG,
    flashinfer_v1.FORMAT,
    triton_cache.FORMAT,
    helion.FORMAT,
    trtllm.FORMAT,
    kernel_tuner.FORMAT,
    t4.FORMAT,
    tunableop.FORMAT,
    aiter.FORMAT,
)

__all__ = [
    "FORMATS",
    "Entry",
    "FactChange",
    "Fidelity",
    "Flip",
    "ForeignBook",
    "ForeignDiff",
    "ForeignSide",
    "Format",
    "HistoryEntry",
    "Loss",
    "Merged",
    "Merges",
    "Trial",
    "by_name",
    "diff",
    "format_of",
    "from_run",
    "history",
    "losses",
    "merge",
    "open_any",
    "write",
]


def format_of(path: Path | str) -> Format | None:
    """The format of what stands at `path`, or None: a file of tunebook's own, something else, or nothing."""
    path = Path(path)
    head = head_of(path)
    if head is None:
        return None
    return next((one for one in FORMATS if one.detects(path, head)), None)


def open_any(path: Path | str) -> ForeignBook | None:
    """The book at `path`, or None where it is of none of these formats: `tunebook.store.read_any` reads it, or says why not.

    Raises ``StoreError``, in one line that names the place, for a malformed one.
    """
    found = format_of(path)
    return None if found is None else found.read(Path(path))


def by_name(name: str) -> Format:
    """The format of that name. Raises ``UsageError`` with the names that there are."""
    for one in FORMATS:
        if one.name == name:
            return one
    raise UsageError(f"{name!r} is no format; these are: {', '.join(one.name for one in FORMATS)}")


def history(paths: Iterable[Path | str]) -> list[HistoryEntry]:
    """The books at these paths, and those in these directories, newest first, each counted against the one before it.

    Raises ``StoreError`` for a malformed one, and ``UsageError`` for a path with none.
    """
    return _history.history(paths, open_any)


def merge(books: Sequence[ForeignBook]) -> Merged:
    """The entries of two or more books; for a problem that several have, the first one's.

    Raises ``UsageError`` where they are not of one format, that format cannot be merged, or they do not belong together.
    """
    return _merge.merge(by_name(books[0].format), books)


def from_run(run: Run, name: str) -> ForeignBook:
    """A run's trials as a book of that format. Raises ``UsageError`` for one that a run cannot become: all but ``t4``."""
    if name != t4.FORMAT.name:
        raise UsageError(f"{run.path}: a run becomes a book of {t4.FORMAT.name} alone, not of {name}")
    return t4.from_run(run)
