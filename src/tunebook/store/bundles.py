"""Bundles: a cache and the runs that support it in one file, a zip archive whose members are stored as they are.

Nothing in it is compressed: the same content gives the same bytes whatever the version of a compressor, and nothing can expand
when it is read. Its members are ``winners.json`` and ``runs/winners.<YYYYmmdd_HHMMSS>[-n].jsonl``. An archive that holds anything
else, other paths, links or compressed members, is no bundle, and nothing is unpacked under a name out of a file.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from tunebook.errors import StoreError
from tunebook.store._text import cause, one_line
from tunebook.store.files import read_bounded
from tunebook.store.misses import Miss

#: The largest bundle that is written or read.
MAX_BUNDLE_BYTES: Final = 256 * 2**20
#: The most runs in one.
MAX_RUNS: Final = 1000
#: What the name of a bundle ends in.
SUFFIX: Final = ".tunebook"
#: What a run's file is called in a bundle; beside a cache it begins with the cache's stem instead.
RUN_NAME: Final = re.compile(r"winners(\.[0-9]{8}_[0-9]{6}(?:-[1-9][0-9]{0,5})?\.jsonl)")

_MAGIC: Final = b"PK\x03\x04"
_CACHE: Final = "winners.json"
_RUNS: Final = "runs/"
#: The archive's directory: an entry takes 46 bytes and its name.
_MAX_DIRECTORY_BYTES: Final = (MAX_RUNS + 1) * 128
_END: Final = struct.Struct("<4s4H2LH")
_END_MAGIC: Final = b"PK\x05\x06"
_ZIP64_END: Final = (20, b"PK\x06\x07")
_ENCRYPTED: Final = 0x1
#: What `zipfile` raises for an archive that is damaged, or of a kind that it does not read.
_FAULTS: Final = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    OverflowError,
    struct.error,
)
_FIRST_DATE: Final = (1980, 1, 1, 0, 0, 0)
_UNIX: Final = 3
_MODE: Final = (stat.S_IFREG | 0o644) << 16


class _NoBundleError(Exception):
    """What is wrong with a file that is to be a bundle."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle, open for reading. `runs` are the names of its run files, ``winners.….jsonl``, in order."""

    path: Path
    runs: tuple[str, ...]
    _archive: zipfile.ZipFile = field(repr=False)

    def cache(self, limit: int) -> bytes:
        """The cache document. Raises ``StoreError`` where it is damaged, or larger than `limit` bytes."""
        size = self._archive.getinfo(_CACHE).file_size
        if size > limit:
            raise StoreError(
                f"{one_line(self.path)}: {_CACHE} in it has {size} bytes, more than the {limit} that are read"
            )
        return self._read(_CACHE)

    def run(self, name: str) -> bytes:
        """The run file of that name. Raises ``StoreError`` where the member is damaged."""
        return self._read(_RUNS + name)

    def _read(self, name: str) -> bytes:
        try:
            return self._archive.read(name)
        except _FAULTS as error:
            raise StoreError(f"{one_line(self.path)}: damaged bundle: {name}: {_said(error)}") from None


@contextmanager
def open_bundle(path: Path | str) -> Iterator[Bundle]:
    """Open a bundle for reading; nothing but its directory has been read then.

    Raises ``StoreError``, in one line, for whatever is none: what is not read is named.
    """
    path = Path(path)
    where = one_line(path)
    try:
        file = _open(path)
    except (OSError, ValueError) as error:
        raise StoreError(f"{where}: {cause(error) if isinstance(error, OSError) else one_line(error)}") from None
    with file:
        try:
            size = _check_size(file)
            archive = zipfile.ZipFile(file)
        except _NoBundleError as error:
            raise StoreError(f"{where}: not a bundle: {error}") from None
        except _FAULTS as error:
            raise StoreError(f"{where}: not a bundle: {_said(error)}") from None
        with archive:
            try:
                runs = _check_members(archive.infolist(), size)
            except _NoBundleError as error:
                raise StoreError(f"{where}: not a bundle: {error}") from None
            yield Bundle(path, runs, archive)


def encode_bundle(cache: bytes, runs: Mapping[str, bytes]) -> bytes:
    """The bytes of a bundle: the same for the same content. Raises ``ValueError`` for a name that no run in a bundle has."""
    for name in runs:
        if not RUN_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a run in a bundle")
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for name, data in [(_CACHE, cache), *((_RUNS + name, runs[name]) for name in sorted(runs))]:
            member = zipfile.ZipInfo(name, _FIRST_DATE)
            member.create_system, member.external_attr = _UNIX, _MODE
            archive.writestr(member, data)
    return made.getvalue()


def is_bundle(data: bytes) -> bool:
    """Whether bytes begin as a bundle does."""
    return data.startswith(_MAGIC)


def read_document(path: Path, limit: int) -> bytes | Miss:
    """The bytes of a cache or run file of at most `limit` bytes, or of the cache in a bundle; else the miss."""
    if not _begins_as_bundle(path):
        return read_bounded(path, limit)
    try:
        with open_bundle(path) as bundle:
            return bundle.cache(limit)
    except StoreError as error:
        detail = str(error).removeprefix(f"{one_line(path)}: ")
        return Miss(kind="schema", where=one_line(path), detail=detail)


def _begins_as_bundle(path: Path) -> bool:
    try:
        with _open(path) as file:
            return is_bundle(file.read(len(_MAGIC)))
    except (OSError, ValueError):
        return False


def _open(path: Path) -> BinaryIO:
    """A regular file, opened without blocking. Raises ``OSError`` for any other, and ``ValueError`` for what is no path."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return os.fdopen(fd, "rb")
    os.close(fd)
    raise OSError("it is not a file")


def _check_size(file: BinaryIO) -> int:
    """The size of the file. Raises ``_NoBundleError`` where reading the archive's directory would not be bounded, or it lies
    elsewhere than at the end."""
    size = os.fstat(file.fileno()).st_size
    if size > MAX_BUNDLE_BYTES:
        raise _NoBundleError(f"{size} bytes are more than the {MAX_BUNDLE_BYTES} that are read")
    before, zip64 = _ZIP64_END
    file.seek(max(0, size - _END.size - before))
    tail = file.read()
    file.seek(0)
    if len(tail) < _END.size:
        raise _NoBundleError("it is cut off")
    magic, *_, count, length, start, comment = _END.unpack(tail[-_END.size :])
    if magic != _END_MAGIC or comment:
        raise _NoBundleError("it does not end as a bundle does: it is cut off, or something follows it")
    if tail[: -_END.size].startswith(zip64):
        raise _NoBundleError("it is an archive in the format zip64")
    if count > MAX_RUNS + 1 or length > _MAX_DIRECTORY_BYTES:
        raise _NoBundleError(f"it holds more than {MAX_RUNS} runs")
    if start + length + _END.size != size:
        raise _NoBundleError("its directory is not where it says")
    return size


def _check_members(members: list[zipfile.ZipInfo], size: int) -> tuple[str, ...]:
    """The names of the runs. Raises ``_NoBundleError`` that names the first member which is not one of a bundle's."""
    names: list[str] = []
    for member in members:
        name = member.orig_filename
        shown = one_line(name, 120)
        if name in names:
            raise _NoBundleError(f"{shown} is in it twice")
        if name != _CACHE and not (name.startswith(_RUNS) and RUN_NAME.fullmatch(name.removeprefix(_RUNS))):
            raise _NoBundleError(f"it holds {shown}, which is neither {_CACHE} nor the name of a run")
        if member.filename != name or member.extra or member.comment:
            raise _NoBundleError(f"{shown} has fields that no member of a bundle has")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise _NoBundleError(f"{shown} is a link or another special file")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
            raise _NoBundleError(f"{shown} is compressed or encrypted; the members of a bundle are stored as they are")
        if member.compress_size != member.file_size:
            raise _NoBundleError(f"{shown} has two sizes")
        names.append(name)
    if _CACHE not in names:
        raise _NoBundleError(f"it holds no {_CACHE}")
    if sum(member.file_size for member in members) > size:
        raise _NoBundleError("its members are larger than itself")
    return tuple(sorted(name.removeprefix(_RUNS) for name in names if name != _CACHE))


def _said(error: BaseException) -> str:
    return one_line(cause(error) if isinstance(error, OSError) else error) or type(error).__name__
