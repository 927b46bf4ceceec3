"""Reading files of recorded calls."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from tunebook.errors import StoreError
from tunebook.records import SCHEMA, MixDocument
from tunebook.store._text import one_line
from tunebook.store.files import read_bounded
from tunebook.store.misses import Miss
from tunebook.store.objects import MAX_ENTRY_BYTES, read_record
from tunebook.store.run_files import other_schema

#: The largest file of recorded calls that is read: some ten thousand problems.
MAX_MIX_BYTES: Final = MAX_ENTRY_BYTES


class _Shell(msgspec.Struct):
    schema: int = SCHEMA


_shell = msgspec.json.Decoder(_Shell)
_mix = msgspec.json.Decoder(MixDocument)


def read_mix(path: Path) -> MixDocument:
    """The calls that a file holds. Raises ``StoreError``, in one line, for one that cannot be read or is of another schema."""
    data = read_bounded(path, MAX_MIX_BYTES)
    if isinstance(data, Miss):
        raise StoreError(str(data))
    try:
        schema = _shell.decode(data).schema
        if schema != SCHEMA:
            raise StoreError(f"{one_line(path)}: {other_schema(schema)}")
        return read_record(data, _mix)
    except RecursionError:
        raise StoreError(f"{one_line(path)}: no file of recorded calls: nested too deeply") from None
    except ValueError as error:
        raise StoreError(f"{one_line(path)}: no file of recorded calls: {one_line(error)}") from None
