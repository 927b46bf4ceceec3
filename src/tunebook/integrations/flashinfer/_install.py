"""Installing: what was chosen goes where FlashInfer looks, so that it serves it, in this process and from a file."""

from __future__ import annotations

import glob
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tunebook.integrations.flashinfer._package import Package
from tunebook.integrations.flashinfer._problems import Found
from tunebook.store._text import cause, one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """An installed winner as a file holds it: FlashInfer's key, and the keys of the problem's other runners."""

    key: str
    siblings: frozenset[str]
    runner: str
    tactic: Any
    policy: tuple[Any, ...] | None


class Kept(dict[str, Any]):
    """FlashInfer's entries out of files, of which those of tuned problems stay.

    FlashInfer clears them when a context with a file is entered, and then reads that file; an entry of another runner of the
    problem would go before the winner's. Entries of its memory do not help there: they are for the runners of one call.
    """

    def __init__(self, entries: Mapping[str, Any]) -> None:
        super().__init__(entries)
        self.kept: dict[str, Any] = {}
        self.shut: set[str] = set()

    def keep(self, key: str, value: Any, siblings: Iterable[str]) -> None:
        """`value` stands under `key` from now on, and nothing under `siblings`."""
        for sibling in siblings:
            self.kept.pop(sibling, None)
            super().pop(sibling, None)
            self.shut.add(sibling)
        self.shut.discard(key)
        self.kept[key] = value
        super().__setitem__(key, value)

    def forget(self) -> None:
        self.kept.clear()
        self.shut.clear()

    def clear(self) -> None:
        super().clear()
        self.update(self.kept)

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self.kept and key not in self.shut:
            super().__setitem__(key, value)

    def pop(self, key: str, *default: Any) -> Any:
        return self.kept[key] if key in self.kept else super().pop(key, *default)


def policy_of(package: Package, one: Found) -> tuple[Any, ...] | None:
    """The measuring policy that FlashInfer 0.7 keeps with a tactic; 0.6.18 keeps none."""
    make = getattr(package.module.AutoTuner, "_profiling_policy", None)
    return None if make is None else tuple(make(one.config))


def install(package: Package, one: Found, place: int, tactic: Any) -> Line | None:
    """Let FlashInfer serve `tactic` of runner number `place` for this problem, to new runners of these classes as well.

    None where a file cannot hold it: it tells runners apart by class, and takes the first.
    """
    tuner, keys, policy = package.tuner, one.cache_keys(package), policy_of(package, one)
    key = keys[place]
    with tuner._lock:
        entries, policies = _kept(tuner)
        fields = {_fields(other) for other in keys}
        for old in [old for old in tuner.profiling_cache if _fields(old) in fields]:
            del tuner.profiling_cache[old]
            for known in [k for k in getattr(tuner, "_profiling_cache_policies", ()) if k[1] == old]:
                del tuner._profiling_cache_policies[known]
        tuner.profiling_cache[key] = (tactic, one.profile)
        if policy is not None:
            tuner._profiling_cache_policies[None, key] = policy
        tuner._dirty = True
        tuner._dirty_seq += 1
        if [type(runner).__name__ for runner in one.runners].index(key.runner_class_name) != place:
            return None
        siblings = frozenset(other.file_key for other in keys) - {key.file_key}
        entries.keep(key.file_key, (key.runner_class_name, tactic), siblings)
        if policy is not None:
            policies.keep(key.file_key, policy, siblings)
    return Line(key=key.file_key, siblings=siblings, runner=key.runner_class_name, tactic=tactic, policy=policy)


def _fields(key: Any) -> tuple[Any, ...]:
    """A key without the identity of the runner."""
    return (key.custom_op, key.runner_class_name, key.nearest_profile, key.extras)


def _kept(tuner: Any) -> tuple[Kept, Kept]:
    """FlashInfer's entries and policies out of files, made to keep ours; ``clear_cache()`` still forgets everything."""
    if not isinstance(tuner._file_configs, Kept):
        tuner._file_configs = Kept(tuner._file_configs)
        tuner._file_config_policies = Kept(getattr(tuner, "_file_config_policies", {}))
        clear = tuner.clear_cache

        def clear_cache() -> None:
            for entries in (tuner._file_configs, tuner._file_config_policies):
                if isinstance(entries, Kept):  # not after `known` has put back what was there before
                    entries.forget()
            clear()

        tuner.clear_cache = clear_cache
    return tuner._file_configs, tuner._file_config_policies


def known(tuner: Any) -> Callable[[], None]:
    """What FlashInfer knows now, to be called to have it know that again."""
    names = ("profiling_cache", "_profiling_cache_policies")  # 0.6.18 has no policies
    winners = [(one, dict(one)) for one in (getattr(tuner, name, None) for name in names) if one is not None]
    names = ("_file_configs", "_file_config_policies")
    files = {name: _copied(getattr(tuner, name)) for name in names if hasattr(tuner, name)}

    def again() -> None:
        with tuner._lock:
            for one, before in winners:
                one.clear()
                one.update(before)
            for name, before in files.items():
                setattr(tuner, name, before)

    return again


def _copied(entries: dict[str, Any]) -> dict[str, Any]:
    copy = type(entries)(entries)
    if isinstance(copy, Kept) and isinstance(entries, Kept):
        copy.kept |= entries.kept
        copy.shut |= entries.shut
    return copy


def export(package: Package, path: Path, lines: Iterable[Line]) -> str | None:
    """Put the winners into the FlashInfer v1 file at `path`, without entries of their problems' other runners.

    FlashInfer's own code reads and writes it, in a tuner beside the process's: its other entries stay, a file of another
    environment is not overwritten. Returns why it could not be written, in one line, or None.
    """
    tuner = package.module.AutoTuner()
    where = one_line(path)
    try:
        served = tuner.load_configs(str(path)) if path.exists() else True
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        return f"{where} was not written: it is not a cache of FlashInfer's ({type(error).__name__}: {one_line(error)})"
    for line in lines:
        for sibling in line.siblings:
            tuner._file_configs.pop(sibling, None)
        tuner._file_configs[line.key] = (line.runner, line.tactic)
        if line.policy is not None:
            tuner._file_config_policies[line.key] = line.policy
    try:
        if not served:  # FlashInfer decides whether it may be replaced
            tuner.save_configs(str(path))
            return None if _holds(package, path) else f"{where} was not written: it was made in another environment"
        path.parent.mkdir(parents=True, exist_ok=True)
        with _beside(path) as temporary:  # not into the file itself: siblings that were removed would be merged back
            tuner.save_configs(str(temporary))
            os.replace(temporary, path)
    except OSError as error:
        return f"{where} was not written: {cause(error)}"
    return None


def beside_runs(path: Path, now: datetime, suffix: str = "") -> Path:
    """A file in ``runs/`` beside `path` that is not there yet, with the time in its name, as run files have it.

    `suffix` is what an engine adds to the names of its files.
    """
    runs, stamp, turn = path.parent / "runs", f"{now:%Y%m%d_%H%M%S}", 1
    name = f"{path.stem}.{stamp}"
    while next(runs.glob(f"{glob.escape(name)}{suffix}{path.suffix}"), None) is not None:
        turn += 1
        name = f"{path.stem}.{stamp}-{turn}"
    return runs / f"{name}{path.suffix}"


def _holds(package: Package, path: Path) -> bool:
    return bool(package.module.AutoTuner().load_configs(str(path)))


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name for a temporary file beside `path`, of which nothing is left behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink()
