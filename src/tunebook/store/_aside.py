"""A broken cache is kept under another name when it is replaced."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from tunebook.store._text import one_line


@contextmanager
def kept_aside(target: Path, why: str | None) -> Iterator[list[str]]:
    """While the file at `target` is replaced, keep what it holds under another name, if there is a reason to.

    It yields what is to be said about it. Where the replacing fails, all is as it was.
    """
    if why is None:
        yield []
        return
    aside = _second_name(target)
    if aside is None:
        aside = _free_name(target)
        try:
            # A second name for the same bytes, so that readers find a file at the first one all the time.
            os.link(target, aside)
        except OSError:
            os.rename(target, aside)
    try:
        yield [f"{one_line(target)} was broken ({why}); it is kept as {one_line(aside.name)} and a new one is written"]
    except BaseException:
        with suppress(OSError):
            if target.exists():
                aside.unlink()
            else:
                aside.rename(target)
        raise


def _free_name(target: Path) -> Path:
    base = target.with_name(f"{target.name}.broken-{datetime.now():%Y%m%d_%H%M%S}")
    for n in itertools.count():
        aside = base.with_name(f"{base.name}-{n}") if n else base
        if not os.path.lexists(aside):
            break
    return aside


def _second_name(target: Path) -> Path | None:
    """The name that a process gave this very file before it was killed."""
    status = target.stat()
    if status.st_nlink == 1:
        return None
    with os.scandir(target.parent) as entries:
        for entry in entries:
            if entry.name.startswith(f"{target.name}.broken-") and entry.inode() == status.st_ino:
                return Path(entry.path)
    return None
