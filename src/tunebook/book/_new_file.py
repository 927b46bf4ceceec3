"""Writing a file that a user has named: all of it or nothing, and never over another one unasked."""

from __future__ import annotations

import os
from pathlib import Path

from tunebook.errors import StoreError, UsageError
from tunebook.store._text import cause, one_line
from tunebook.store.files import replace_atomically


def check_new(path: Path, *, force: bool) -> None:
    """Raise UsageError where `path` is a directory, or there is something that may not be replaced."""
    if path.is_dir():
        raise UsageError(f"-o {one_line(path)} is a directory; name a file")
    if not force and os.path.lexists(path):
        raise UsageError(f"-o {one_line(path)} is there already; name another file, or say --force to replace it")


def write_new(path: Path, data: bytes, *, force: bool) -> None:
    """Write the file. With `force` what is there is replaced; a link itself, not what it leads to.

    Raises UsageError as `check_new` does, and StoreError where it cannot be written; then nothing has changed.
    """
    check_new(path, force=force)
    try:
        replace_atomically(path, data, check=lambda: check_new(path, force=force))
    except (OSError, ValueError) as error:
        why = cause(error) if isinstance(error, OSError) else one_line(error)
        raise StoreError(f"{one_line(path)} was not written: {why}; name another place with -o") from None
