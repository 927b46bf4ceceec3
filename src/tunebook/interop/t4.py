"""T4, the open format of autotuning results (``results-schema.json``, version 1.0.0), as Kernel Tuner writes it.

``{"results": [{configuration, times, invalidity, correctness, measurements, objectives}, …], "schema_version", "metadata"}``:
one result a trial, its times in milliseconds unless the metadata name another unit. It tells neither kernel nor problem. What
tunebook writes has one more member in each result, ``problem``, so that a run of many problems is one file; the schema allows it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tunebook.interop._format import Entry, Fidelity, ForeignBook, Format, Loss, Trial
from tunebook.interop._pieces import dump, member, own, seconds, words
from tunebook.interop._reading import MAX_ENTRIES, head_members, parse_json, read_bytes, refuse, replace
from tunebook.interop._t4_results import CORRECT, document, of_cache, of_run, of_trials
from tunebook.interop.kernel_tuner import Content, best_of
from tunebook.store import Run
from tunebook.store._text import one_line

#: What a result may say of its configuration; all but the first say why it has no time.
_INVALIDITY: Final = (CORRECT, "timeout", "compile", "runtime", "correctness", "constraints")
_MILLI: Final = 1e-3
_UNITS: Final = {
    **dict.fromkeys(("s", "seconds"), 1.0),
    **dict.fromkeys(("ms", "milliseconds"), _MILLI),
    **dict.fromkeys(("us", "µs", "microseconds"), 1e-6),
    **dict.fromkeys(("ns", "nanoseconds"), 1e-9),
}
_BEGINS = re.compile(rb'\s*\{\s*"results"\s*:\s*\[')


class T4:
    """Every result is a trial; those that name one problem are its entry."""

    name: Final = "t4"
    title: Final = "T4 results"
    fidelity: Fidelity = "bytes"
    lost: tuple[Loss, ...] = (
        Loss("white space of a file that Kernel Tuner did not write itself"),
        Loss(
            "verdicts (the choice read back is the fastest trial), problems without trials, rounds, versions, device",
            "run",
        ),
        Loss("kernel, problem size, device, and the values offered to each parameter", "kernel-tuner"),
        Loss("problems without a time; of the others all but the name of each configuration and its time", "others"),
    )

    def detects(self, path: Path, head: bytes) -> bool:
        """By the members of a result."""
        members = head_members(head) or {}
        begins = _BEGINS.match(head.removeprefix(b"\xef\xbb\xbf")) is not None or "schema_version" in members
        return begins and ((b'"invalidity"' in head and b'"configuration"' in head) or members.get("results") == [])

    def read(self, path: Path) -> ForeignBook:
        """Read it. Raises ``StoreError`` for a result that lacks what the schema requires, and for a time that is none."""
        value = parse_json(path, read_bytes(path))
        if not isinstance(value, dict):
            refuse(path, "it is no object with results")
        if len(member(path, value, "results", list, "")) > MAX_ENTRIES:
            refuse(path, f"more than {MAX_ENTRIES} results are not read", "results")
        return _book(path, value)

    def write(self, book: ForeignBook, path: Path) -> None:
        """Write its own book, Kernel Tuner's, or any that has trials. Raises ``UsageError`` for one without."""
        if book.format == self.name:
            content = own(book, self.name)
        elif isinstance(book.content, Content):
            content = document(of_cache(book.content))
        else:
            content = document(of_trials(book))
        replace(path, dump(content))

    def merge(self, first: ForeignBook, second: ForeignBook) -> ForeignBook:
        """The results of both; of a configuration that both have of one problem, the first's."""
        mine, theirs = own(first, self.name), own(second, self.name)
        have = {_identity(result) for result in mine["results"]}
        more = [result for result in theirs["results"] if _identity(result) not in have]
        return _book(first.path, {**mine, "results": [*mine["results"], *more]})


def from_run(run: Run) -> ForeignBook:
    """A run's trials as a book of T4: a result for each tactic of each problem, with every sample of its races."""
    book = _book(run.path, document(of_run(run)))
    facts = {**book.facts, "session": run.header.session, "tunebook": run.header.version}
    return ForeignBook(path=run.path, format=T4.name, facts=facts, entries=book.entries, content=book.content)


def _book(path: Path, value: dict[str, Any]) -> ForeignBook:
    results: list[dict[str, Any]] = value["results"]
    metadata = value.get("metadata")
    unit = metadata.get("timeunit") if isinstance(metadata, dict) else None
    scale = _UNITS.get(unit, _MILLI) if isinstance(unit, str) else _MILLI
    trials = [_trial(path, result, scale, f"results[{number}]") for number, result in enumerate(results)]
    facts = {}
    if "schema_version" in value:
        facts["schema_version"] = words(path, value["schema_version"], "schema_version")
    return ForeignBook(path=path, format=T4.name, facts=facts, entries=_entries(results, trials), content=value)


def _trial(path: Path, result: object, scale: float, place: str) -> Trial:
    if not isinstance(result, dict):
        refuse(path, "it is no object", place)
    tactic = words(path, member(path, result, "configuration", dict, place), f"{place} configuration")
    if "problem" in result:
        member(path, result, "problem", str, place)
    runtimes = _times(path, result, scale, place)
    measured = _measurements(path, result, place)
    invalidity = member(path, result, "invalidity", str, place)
    if invalidity not in _INVALIDITY:
        refuse(path, f"invalidity {one_line(invalidity, 60)!r} is none of {', '.join(_INVALIDITY)}", place)
    if invalidity != CORRECT:
        return Trial(tactic=tactic, reason=invalidity)
    for one in measured:
        if one["name"] == "time":
            unit = one.get("unit")
            scale = _UNITS.get(unit, scale) if isinstance(unit, str) else scale
            return Trial(tactic=tactic, seconds=seconds(path, one.get("value"), scale, place))
    if not runtimes:
        return Trial(tactic=tactic, reason="no time")
    return Trial(tactic=tactic, seconds=sum(runtimes) / len(runtimes))


def _times(path: Path, result: dict[str, Any], scale: float, place: str) -> list[float]:
    """The runtimes, in seconds."""
    times = member(path, result, "times", dict, place)
    if "runtimes" not in times:
        return []
    runtimes = member(path, times, "runtimes", list, f"{place} times")
    return [seconds(path, time, scale, f"{place} times", "runtime") for time in runtimes]


def _measurements(path: Path, result: dict[str, Any], place: str) -> list[dict[str, Any]]:
    if "measurements" not in result:
        return []
    found: list[dict[str, Any]] = member(path, result, "measurements", list, place)
    for one in found:
        if not isinstance(one, dict):
            refuse(path, "a measurement is no object", place)
        member(path, one, "name", str, f"{place} measurements")
    return found


def _entries(results: Sequence[dict[str, Any]], trials: Sequence[Trial]) -> dict[str, Entry]:
    groups: dict[str, list[int]] = {}
    for number, result in enumerate(results):
        groups.setdefault(_problem(result), []).append(number)
    found = {}
    for key, numbers in groups.items():
        objective = _objective(results[numbers[0]])
        these = tuple(trials[number] for number in numbers)
        scores = [_score(results[number], trials[number], objective) for number in numbers]
        op, _, problem = key.partition("|")
        choice, taken = best_of(these, scores, objective)
        found[key] = Entry(key=key, op=op, problem=problem, choice=choice, seconds=taken, trials=these)
    return found


def _problem(result: Mapping[str, Any]) -> str:
    """The problem that a result names. A file that names none is about one: the kernel that has these parameters."""
    named: str = result.get("problem") or f"kernel|{','.join(sorted(result['configuration']))}"
    return named


def _objective(result: Mapping[str, Any]) -> str:
    found = result.get("objectives")
    return found[0] if isinstance(found, list) and found and isinstance(found[0], str) else "time"


def _score(result: Mapping[str, Any], trial: Trial, objective: str) -> Any:
    if objective == "time":
        return trial.seconds
    return next((one.get("value") for one in result.get("measurements", []) if one["name"] == objective), None)


def _identity(result: Mapping[str, Any]) -> tuple[str, str]:
    return _problem(result), repr(sorted(result["configuration"].items()))


FORMAT: Format = T4()
