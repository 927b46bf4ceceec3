"""The history: the runs of a place, newest first, in one line each."""

from __future__ import annotations

from tunebook.book._heads import Head
from tunebook.book._place import Place
from tunebook.records import Overall, Record


class Entry(Record, frozen=True, kw_only=True):
    """One run: `seconds` is None and `finished` false where the session did not end by itself.

    `problems` is how many were settled; `overall` what the whole model gained, where that was compared; `commit` that of the
    working directory in which it was made, `dirty` whether files differed from it (None: not known).
    """

    path: str
    started: str
    policy: str
    problems: int
    model: str = ""
    seconds: float | None = None
    finished: bool = False
    left_out: int = 0
    overall: Overall | None = None
    note: str = ""
    commit: str = ""
    dirty: bool | None = None
    version: str = ""
    session: str = ""
    bytes: int = 0


def history(place: Place, *, model: str | None = None, op: str | None = None) -> list[Entry]:
    """The runs of a place, newest first: those of `model`, and those that settled a problem of `op`, where they are given."""
    return [entry_of(head) for head in place.heads(model) if op is None or _has(head, op)]


def entry_of(head: Head) -> Entry:
    header, footer = head.header, head.footer
    return Entry(
        path=str(head.path),
        started=header.started,
        policy=header.policy,
        problems=footer.problems if footer is not None else len(head.problems()),
        model=header.model,
        seconds=footer.seconds if footer is not None else None,
        finished=footer is not None,
        left_out=footer.left_out if footer is not None else 0,
        overall=head.overall,
        note=header.note,
        commit=header.commit,
        dirty=header.dirty,
        version=header.version,
        session=header.session,
        bytes=head.bytes,
    )


def _has(head: Head, op: str) -> bool:
    return any(key.partition("|")[0] == op for key in head.problems())
