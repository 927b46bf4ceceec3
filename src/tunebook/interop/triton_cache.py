"""Triton's disk cache of an autotuned kernel, ``<kernel>.autotune.json``: every configuration of one problem with its time.

``{"key": […], "configs_timings": [[configuration, [median, 20 %, 80 %]], …]}``, in milliseconds, as
``triton/runtime/autotuner.py`` writes it. A configuration that could not be compiled or launched has ``Infinity``. The
kernel's name is in the file's name only; the source, the environment and the configurations offered are hashed into the
directory's.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, Final, NoReturn

from tunebook.interop._format import Entry, Fidelity, ForeignBook, Format, Loss, Trial
from tunebook.interop._pieces import dump, member, own, seconds, words
from tunebook.interop._reading import MAX_ENTRIES, head_members, read_text, refuse, replace
from tunebook.store import Miss
from tunebook.store._text import one_line
from tunebook.store.misses import Misses

SUFFIX: Final = ".autotune.json"
_FAILED: Final = "inf: it did not compile, or did not fit"


class TritonCache:
    """One file is one problem, so two of them cannot become one."""

    name: Final = "triton"
    title: Final = "Triton's autotune cache (*.autotune.json)"
    fidelity: Fidelity = "bytes"
    lost: tuple[Loss, ...] = (
        Loss("white space of a file that Triton did not write itself"),
        Loss("the file's name, where another is given"),
    )

    def detects(self, path: Path, head: bytes) -> bool:
        """By its members; by its name where it has none that another format would know it by."""
        members = head_members(head)
        if members and not {"key", "configs_timings"} & members.keys():
            return False
        return b'"configs_timings"' in head or (path.name.endswith(SUFFIX) and bool(head))

    def read(self, path: Path) -> ForeignBook:
        """Read it. Raises ``StoreError`` for what Triton could not read, and for a time that is none."""
        value = _decode(path, read_text(path))
        if not isinstance(value, dict):
            refuse(path, "it is no object with key and configs_timings")
        key = member(path, value, "key", list, "")
        timings = member(path, value, "configs_timings", list, "")
        if not timings:
            refuse(path, "it has no configuration", "configs_timings")
        if len(timings) > MAX_ENTRIES:
            refuse(path, f"more than {MAX_ENTRIES} configurations are not read", "configs_timings")
        misses = Misses(one_line(path))
        trials: dict[str, tuple[Trial, tuple[float, ...]]] = {}
        for number, item in enumerate(timings):
            trial, times = _trial(path, item, f"configs_timings[{number}]")
            if trial.tactic in trials:
                said = f"{trial.tactic} occurs before, and this time is the one that Triton uses"
                misses.add(
                    Miss(kind="entry", where=f"{one_line(path)}, configs_timings[{number}]", detail=one_line(said))
                )
            trials[trial.tactic] = trial, times
        op = path.name.removesuffix(SUFFIX) if path.name.endswith(SUFFIX) else path.stem
        problem = ",".join(words(path, part, "key") for part in key)
        # As Triton compares: the median first, the first of equals.
        best = min(trials.values(), key=lambda one: one[1])[0]
        entry = Entry(
            key=f"{op}|{problem}",
            op=op,
            problem=problem,
            choice=best.tactic,
            seconds=best.seconds,
            trials=tuple(trial for trial, _ in trials.values()),
        )
        return ForeignBook(
            path=path, format=self.name, facts={}, entries={entry.key: entry}, misses=misses.known(), content=value
        )

    def write(self, book: ForeignBook, path: Path) -> None:
        """Write it again. Triton looks for the name that it was read from."""
        replace(path, dump(own(book, self.name)))


def _trial(path: Path, item: Any, place: str) -> tuple[Trial, tuple[float, ...]]:
    if not isinstance(item, list) or len(item) != 2 or not isinstance(item[0], dict):
        refuse(path, "it is not [configuration, times]", place)
    config: dict[str, Any] = item[0]
    params = {**member(path, config, "kwargs", dict, place)}
    params |= {name: value for name, value in config.items() if name != "kwargs" and value is not None}
    times = item[1] if isinstance(item[1], list) else [item[1]]
    if not times:
        refuse(path, "it has no times", place)
    found = tuple(math.inf if time == math.inf else seconds(path, time, 1e-3, place) for time in times)
    tactic = words(path, params, place)
    if found[0] == math.inf:
        return Trial(tactic=tactic, reason=_FAILED), found
    return Trial(tactic=tactic, seconds=found[0]), found


def _decode(path: Path, text: str) -> Any:
    """JSON with ``Infinity``, which Python's ``json`` writes for a configuration that failed."""
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_infinite, parse_float=_finite)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except json.JSONDecodeError as error:
        refuse(path, f"not JSON: {error.msg}", f"line {error.lineno}, column {error.colno}")
    except RecursionError:
        refuse(path, "not JSON that is read: it is nested too deeply")
    except ValueError as error:
        refuse(path, f"not JSON that is read: {error}")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"{json.dumps(twice)} occurs twice in one object")
    return found


def _infinite(name: str) -> float:
    if name != "Infinity":
        _no_number(name)
    return math.inf


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _no_number(text)
    return number


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{one_line(text, 60)} is not a number")


FORMAT: Format = TritonCache()
