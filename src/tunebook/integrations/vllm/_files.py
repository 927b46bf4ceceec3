"""Where a warm-up's results are: vLLM's own file, a FlashInfer v1 file for each rank, and tunebook's cache beside it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from tunebook.integrations.flashinfer import Line, Package, export
from tunebook.store._text import cause, one_line


def cache_beside(file: Path) -> Path:
    """``autotune_configs_dp0_rank0.json`` is vLLM's, ``autotune_configs_dp0_rank0.tunebook.json`` tunebook's."""
    return file.with_name(f"{file.stem}.tunebook.json")


def named_as_before(file: Path, fresh: Path, before: Path) -> Path:
    """What vLLM would have called `file` if it had not been given `fresh` in the place of `before`."""
    return before.with_name(before.stem + file.name.removeprefix(fresh.stem))


def write_configs(package: Package, file: Path, lines: Collection[Line], *, tuned: bool) -> str | None:
    """Write FlashInfer's state to `file`, the winners in `lines` without entries of their problems' other runners.

    Not written where nothing was `tuned` and the file holds all of it already. Why it could not be written, or None.
    """
    tuner = package.tuner
    try:
        if not tuned and _holds(package, file, lines):
            return None
        tuner.save_configs(str(file))
    except OSError as error:
        return f"{one_line(file)} was not written: {cause(error)}"
    return export(package, file, lines) if lines else None


def _holds(package: Package, file: Path, lines: Iterable[Line]) -> bool:
    tuner, other = package.tuner, package.module.AutoTuner()
    try:
        if not other.load_configs(str(file)):
            return False
    except (OSError, ValueError, TypeError, LookupError, AttributeError):  # what it raises for a broken file
        return False
    mine: dict[str, Any] = dict(tuner._file_configs)
    for key, (tactic, _) in tuner.profiling_cache.items():
        mine[key.file_key] = (key.runner_class_name, tactic)
    theirs = other._file_configs
    shut = {sibling for line in lines for sibling in line.siblings}
    return shut.isdisjoint(theirs) and all(theirs.get(key) == value for key, value in mine.items())
