"""Mixes of steps: written by hand, or recorded while a model serves, and kept in a file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tunebook.errors import StoreError, UsageError
from tunebook.records import Mix, MixDocument
from tunebook.store.files import replace_atomically
from tunebook.store.mixes import read_mix

if TYPE_CHECKING:
    from tunebook.engine._runner import ModelRunner

#: The mix in which every phase counts alike.
EQUAL = "equal"
_STEP = re.compile(r"\s*(decode|prefill)\s+([0-9]{1,18})\s*=\s*([0-9]+(?:\.[0-9]+)?)\s*")
_FORMS = (
    "'decode 1=100,prefill 512=1' (steps of each phase), 'equal', or a file that `tunebook generate --record-mix` wrote"
)


def parse_mix(value: str | Path | Mapping[str, float], fingerprint: str | None, what: str = "mix") -> Mix | None:
    """A mix as the user gives it; None for the one in which every phase counts alike.

    Steps of phases by name, as a text or a mapping, or the path of a file of recorded calls, which must be of the model with
    this fingerprint (None: of any). Raises UsageError that names
    `what` and the part that is wrong, or the other model that a file is of; StoreError for a file that cannot be read.
    """
    if isinstance(value, str) and value.strip() == EQUAL:
        return None
    if isinstance(value, Path) or (isinstance(value, str) and "=" not in value):
        path = Path(value).expanduser()
        if not path.exists():
            raise UsageError(f"{what} {str(value)!r} is no file and no mix; it is {_FORMS}")
        return _of_file(path, fingerprint, what)
    parts = value.split(",") if isinstance(value, str) else [f"{phase}={count}" for phase, count in value.items()]
    steps: dict[str, float] = {}
    for part in filter(str.strip, parts):
        found = _STEP.fullmatch(part)
        if not found or not float(found[3]) > 0 or int(found[2]) < 1:
            raise UsageError(f"{what}: {part.strip()!r} is not a phase and a count above 0; it is {_FORMS}")
        name = f"{found[1]} {int(found[2])}"
        if name in steps:
            raise UsageError(f"{what}: {name} is counted twice")
        steps[name] = float(found[3])
    if not steps:
        raise UsageError(f"{what} {value!r} counts nothing; it is {_FORMS}")
    return Mix(steps=steps)


def _of_file(path: Path, fingerprint: str | None, what: str) -> Mix:
    document = read_mix(path)
    if fingerprint is not None and document.fingerprint != fingerprint:
        raise UsageError(f"{what} {path}: the calls were recorded of another model, {document.model}")
    if not document.calls:
        raise UsageError(f"{what} {path}: no call was recorded")
    return Mix(calls=document.calls)


@contextmanager
def record_mix(runner: ModelRunner, path: str | Path) -> Iterator[None]:
    """Count the calls of every problem in this block, and add them to those in the file, which is made if need be.

    What was counted is written however the block ends. Raises UsageError for a file of another model, and StoreError where
    it cannot be read or written; it is read before the block begins.
    """
    path = Path(path).expanduser()
    counts: Counter[str] = Counter()
    if path.exists():
        before = read_mix(path)
        if before.fingerprint != runner.loaded.fingerprint:
            raise UsageError(f"{path} holds calls of another model, {before.model}; name another file")
        counts.update(before.calls)
    scope = runner.scope
    scope.recorded.clear()
    scope.record(True)
    try:
        yield
    finally:
        scope.record(False)
        counts.update(scope.recorded)
        document = MixDocument(
            model=runner.name, fingerprint=runner.loaded.fingerprint, calls=dict(sorted(counts.items()))
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_atomically(path, msgspec.json.format(msgspec.json.encode(document)) + b"\n")
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror or error}") from error
