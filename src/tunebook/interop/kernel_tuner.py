"""Kernel Tuner's cache file: every configuration of one kernel, problem size and device, as ``kernel_tuner/util.py`` writes it.

A JSON object whose ``cache`` has a line a configuration. A session that was interrupted, or still runs, has not written the
end of it; such a file is read, and written again, without. Times are milliseconds. A configuration that failed has a class of
error: newer versions write it as ``__error__``, older ones in the place of its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tunebook.interop._format import Entry, Fidelity, ForeignBook, Format, Loss, Trial
from tunebook.interop._pieces import dump, finite, member, own, same, seconds, words
from tunebook.interop._reading import MAX_ENTRIES, canonical, parse_json, read_bytes, refuse, replace

#: Objectives of which more is better, as Kernel Tuner has it; of others less is.
HIGHER: Final = frozenset(
    {"fitness", "GFLOP/s", "TFLOP/s", "GB/s", "TB/s", "GFLOPS/W", "TFLOPS/W", "GFLOP/J", "TFLOP/J"}
)
#: What an entry says where nothing ran.
NONE: Final = "none: every configuration failed"
#: The classes of error, wherever they stand.
_ERRORS: Final = frozenset({"ErrorConfig", "InvalidConfig", "CompilationFailedConfig", "RuntimeFailedConfig"})
#: The oldest versions wrote this time for a configuration that failed, in milliseconds.
_FAILED_MS: Final = 1e20
#: What two files must have in common to become one.
_SAME: Final = ("device", "kernel", "problem size", "parameters", "objective")


@dataclass(frozen=True, slots=True)
class Content:
    """The document; `open` says that its end was not written yet."""

    document: dict[str, Any]
    open: bool

    @property
    def names(self) -> list[str]:
        """The parameters."""
        found: list[str] = self.document["tune_params_keys"]
        return found

    @property
    def cache(self) -> dict[str, dict[str, Any]]:
        """What is known of each configuration."""
        found: dict[str, dict[str, Any]] = self.document["cache"]
        return found

    @property
    def objective(self) -> str:
        """What was tuned for; the first of several."""
        return self.objectives[0]

    @property
    def objectives(self) -> list[str]:
        """All that was tuned for: newer versions have several."""
        found = self.document.get("objective", "time")
        found = found if isinstance(found, list) and found else [found]
        return [one if isinstance(one, str) else "time" for one in found]


class KernelTuner:
    """One file is one problem; its trials are all of its configurations."""

    name: Final = "kernel-tuner"
    title: Final = "Kernel Tuner's cache"
    fidelity: Fidelity = "bytes"
    lost: tuple[Loss, ...] = (Loss("white space and order of a file that Kernel Tuner did not write itself"),)

    def detects(self, path: Path, head: bytes) -> bool:
        """By its first members."""
        return all(f'"{name}"'.encode() in head for name in ("device_name", "kernel_name", "tune_params_keys"))

    def read(self, path: Path) -> ForeignBook:
        """Read it. Raises ``StoreError`` for a configuration without its parameters, and for a time that is none."""
        data = read_bytes(path).rstrip()
        opened = not data.endswith((b"}\n}", b"}}}", b"}\r\n}"))
        value = parse_json(path, data.removesuffix(b",") + b"}\n}" if opened else data)
        if not isinstance(value, dict):
            refuse(path, "it is no object with device_name, kernel_name and cache")
        _check(path, value)
        return _book(path, Content(value, opened))

    def write(self, book: ForeignBook, path: Path) -> None:
        """Write it again, closed where it was closed."""
        content: Content = own(book, self.name)
        head = {name: value for name, value in content.document.items() if name != "cache"}
        lines = [f"\n{dump({key: value})[1:-1].decode()}," for key, value in content.cache.items()]
        # An empty cache is written and its brackets are taken off again, as Kernel Tuner does.
        text = dump({**head, "cache": {}}, indent="").removesuffix(b"}\n}") + "".join(lines).encode()
        replace(path, text if content.open else text.removesuffix(b",") + b"}\n}")

    def merge(self, first: ForeignBook, second: ForeignBook) -> ForeignBook:
        """Raises ``UsageError`` unless both are of one device, kernel, problem and list of parameters."""
        same(first, second, _SAME)
        mine, theirs = own(first, self.name), own(second, self.name)
        offered = {
            name: [*values, *(value for value in theirs.document["tune_params"].get(name, ()) if value not in values)]
            for name, values in mine.document["tune_params"].items()
        }
        cache = {**mine.cache, **{key: found for key, found in theirs.cache.items() if key not in mine.cache}}
        return _book(first.path, Content({**mine.document, "tune_params": offered, "cache": cache}, mine.open))


def best_of(trials: Sequence[Trial], scores: Sequence[Any], objective: str) -> tuple[str, float | None]:
    """Choice and seconds of the trial that scores best, the first of equals; one whose score is no number has failed."""
    sign = -1 if objective in HIGHER else 1
    valid = [(sign * score, i) for i, score in enumerate(scores) if finite(score) and not trials[i].reason]
    if not valid:
        return NONE, None
    best = trials[min(valid)[1]]
    return best.tactic, best.seconds


def _check(path: Path, value: dict[str, Any]) -> None:
    """Refuse a document that lacks what Kernel Tuner writes."""
    for name in ("device_name", "kernel_name"):
        member(path, value, name, str, "")
    names = member(path, value, "tune_params_keys", list, "")
    if not all(isinstance(name, str) for name in names):
        refuse(path, "a name is no text", "tune_params_keys")
    values = member(path, value, "tune_params", dict, "")
    for name in (*names, *values):
        member(path, values, name, list, "tune_params")
    if len(member(path, value, "cache", dict, "")) > MAX_ENTRIES:
        refuse(path, f"more than {MAX_ENTRIES} configurations are not read", "cache")


def _book(path: Path, content: Content) -> ForeignBook:
    document = content.document
    size = words(path, document.get("problem_size", "not told"), "problem_size")
    facts = {
        "device": document["device_name"],
        "kernel": document["kernel_name"],
        "problem size": size,
        "parameters": ",".join(content.names),
        "objective": ",".join(content.objectives),
    }
    if "schema_version" in document:
        facts["schema_version"] = words(path, document["schema_version"], "schema_version")
    trials: list[Trial] = []
    scores: list[Any] = []
    for key in content.cache:
        found = member(path, content.cache, key, dict, "cache")
        trials.append(_trial(path, content.names, found, f"cache {key}"))
        scores.append(found.get(content.objective))
    choice, taken = best_of(trials, scores, content.objective)
    entry = Entry(
        key=f"{facts['kernel']}|{size}",
        op=facts["kernel"],
        problem=f"problem size {size}",
        choice=choice,
        seconds=taken,
        trials=tuple(trials),
    )
    return ForeignBook(path=path, format=KernelTuner.name, facts=facts, entries={entry.key: entry}, content=content)


def failed(found: dict[str, Any]) -> str:
    """The class of error of a configuration, empty where it has none."""
    return next((value for value in found.values() if isinstance(value, str) and value in _ERRORS), "")


def _trial(path: Path, names: list[str], found: dict[str, Any], place: str) -> Trial:
    for name in names:
        if name not in found:
            refuse(path, f"parameter {name} is missing", place)
    tactic = words(path, {name: found[name] for name in names}, place)
    time = found.get("time")
    if error := failed(found):
        return Trial(tactic=tactic, reason=error)
    if time is None:
        return Trial(tactic=tactic, reason="no time")
    if finite(time) and time >= _FAILED_MS:
        return Trial(tactic=tactic, reason=f"time {canonical(time)}")
    return Trial(tactic=tactic, seconds=seconds(path, time, 1e-3, place))


FORMAT: Format = KernelTuner()
