"""Keeps a converted checkpoint in the cache directory: made once, whole or not at all, whoever comes first.

The checkpoint `<digest>/` holds a manifest of its files, written last; beside it are `<digest>.lock`, held while
converting, and `<digest>.<pid>.partial/`, the conversion under way.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from tunebook.engine.models._loaded import Progress
from tunebook.errors import ModelError

_log = logging.getLogger("tunebook.engine")

_MANIFEST = "tunebook-manifest.json"
_SCHEMA = 1
_MIB = 1 << 20


class _Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    files: dict[str, int]
    """Sizes in bytes by file name."""


def obtain(
    target: Path,
    convert: Callable[[Path, Progress], None],
    needs_bytes: int,
    report: Progress,
    *,
    reject: str | None = None,
) -> None:
    """See to it that the directory `target` holds a whole conversion.

    `convert` fills a new empty directory beside it, which takes the target's place only when it is complete, so another
    process sees nothing or everything. Of two processes that start at once, one converts and the other waits for it.
    `reject` is the reason to convert again over a directory that looks whole. A directory that cannot be written, or a
    disk without `needs_bytes` free, is a `ModelError`.
    """
    if reject is None and damage(target) is None:
        return
    import filelock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(f"{target}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            report("waiting for another process that is converting the same model", None)
            lock.acquire()
            reject = None  # the other one has just converted it
        try:
            found = damage(target) or reject
            if found is not None:
                if target.exists():
                    _log.warning("%s is converted again: %s", target, found)
                _convert(target, convert, needs_bytes, report)
        finally:
            lock.release()
    except OSError as error:
        raise ModelError(
            f"cannot write the converted model to {target}: {error.strerror or error}; "
            "set TUNEBOOK_CACHE_DIR to a directory that can be written"
        ) from error


def damage(directory: Path) -> str | None:
    """Say what is wrong with a converted directory, or None if it is whole. Sizes are compared, contents are not."""
    try:
        manifest = msgspec.json.decode((directory / _MANIFEST).read_bytes(), type=_Manifest)
    except FileNotFoundError:
        return f"it has no {_MANIFEST}"
    except (OSError, msgspec.MsgspecError) as error:
        return f"its {_MANIFEST} cannot be read ({error})"
    if manifest.schema != _SCHEMA:
        return f"its {_MANIFEST} has schema {manifest.schema} instead of {_SCHEMA}"
    for name, size in manifest.files.items():
        try:
            found = (directory / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found} bytes instead of {size}"
    return None


def _convert(target: Path, convert: Callable[[Path, Progress], None], needs_bytes: int, report: Progress) -> None:
    """Convert beside the target and move the result there; the lock is held."""
    for left in target.parent.glob(f"{target.name}.*.partial"):
        shutil.rmtree(left, ignore_errors=True)  # of a process that was killed: a live one would hold the lock
    free = shutil.disk_usage(target.parent).free
    if free < needs_bytes:
        raise ModelError(
            f"converting the model needs {needs_bytes // _MIB} MiB in {target.parent}, which has {free // _MIB} left; "
            "make room or set TUNEBOOK_CACHE_DIR to another disk"
        )
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        convert(partial, report)
        manifest = _Manifest(schema=_SCHEMA, files={p.name: p.stat().st_size for p in sorted(partial.iterdir())})
        (partial / _MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
