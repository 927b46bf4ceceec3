"""The results of T4, made of a run, of Kernel Tuner's cache, and of any book that has trials."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from tunebook.errors import UsageError
from tunebook.interop._flashinfer import ONE_OF_SEVERAL
from tunebook.interop._format import ForeignBook, Trial
from tunebook.interop.kernel_tuner import Content, failed
from tunebook.records import Rejected, Tactic, Timed
from tunebook.store import Run
from tunebook.store._text import one_line

VERSION: Final = "1.0.0"
CORRECT: Final = "correct"
#: The names that Kernel Tuner has for what failed, in T4's; others are constraints.
_CLASSES: Final = {"CompilationFailedConfig": "compile", "RuntimeFailedConfig": "runtime"}
#: What Kernel Tuner's results have that T4 puts elsewhere than among the measurements.
_TIMES: Final = {
    "compile_time": "compilation",
    "benchmark_time": "benchmark",
    "framework_time": "framework",
    "strategy_time": "search_algorithm",
    "verification_time": "validation",
}

#: Why a winner is not written: it did not fail.
_NO_TIME: Final = "no time"

Result = dict[str, Any]


def document(results: list[Result]) -> dict[str, Any]:
    """The whole file."""
    return {"results": results, "schema_version": VERSION, "metadata": {"timeunit": "milliseconds"}}


@dataclass(slots=True)
class _Tried:
    """What a run has of one tactic on one problem. The samples of its races count, else those of its first looks."""

    last: Timed | Rejected
    looks: list[float] = field(default_factory=list)
    raced: list[float] = field(default_factory=list)


def of_run(run: Run) -> list[Result]:
    """A result for each tactic of each problem."""
    tried: dict[tuple[str, str], _Tried] = {}
    for line in run.trials:
        one = tried.setdefault((line.problem, line.trial.tactic), _Tried(line.trial))
        one.last = line.trial
        if isinstance(line.trial, Timed):
            (one.raced if line.race else one.looks).extend(line.trial.samples)
    return [_of_tried(problem, one, run.header.started) for (problem, _), one in tried.items()]


def of_cache(content: Content) -> list[Result]:
    """A result for each configuration, as Kernel Tuner makes them, but for the times that its cache has not."""
    objective = content.objective
    elsewhere = {*content.names, *_TIMES, "timestamp", "times"}
    results = []
    for found in content.cache.values():
        result: Result = {"timestamp": found["timestamp"]} if "timestamp" in found else {}
        result["configuration"] = {name: value for name, value in found.items() if name in content.names}
        taken = {theirs: found[ours] for ours, theirs in _TIMES.items() if ours in found}
        result["times"] = {**taken, "runtimes": found.get("times", [])}
        error = failed(found)
        result["invalidity"] = _CLASSES.get(error, "constraints") if error else CORRECT
        result["correctness"] = 1
        result["measurements"] = [
            {"name": name, "value": value, "unit": "ms" if name.startswith("time") else ""}
            for name, value in found.items()
            if name not in elsewhere
        ]
        result["objectives"] = [objective]
        results.append(result)
    return results


def of_trials(book: ForeignBook) -> list[Result]:
    """A result for each trial, and for each winner with a time of an entry without trials.

    Raises ``UsageError`` for a book that has neither.
    """
    results = []
    for key, entry in book.entries.items():
        trials = entry.trials or (Trial(tactic=entry.choice, seconds=entry.seconds, reason=_NO_TIME),)
        for trial in trials:
            configuration = {"tactic": trial.tactic}
            if trial.seconds is not None:
                results.append(_result(key, configuration, CORRECT, (trial.seconds * 1e3,)))
            elif trial.reason not in (_NO_TIME, ONE_OF_SEVERAL):
                results.append(_result(key, configuration, "runtime", ()))
    if not results:
        raise UsageError(
            f"{one_line(book.path)}: T4 holds trials with their times, and this book of {book.format} has none"
        )
    return results


def _of_tried(problem: str, one: _Tried, started: str) -> Result:
    tactic = Tactic.parse(one.last.tactic)
    # A parameter may bear the name that says which runner it is of; JSON has no infinity.
    params = {("runner_" if name == "runner" else name): _plain(value) for name, value in tactic.params}
    configuration = {"runner": tactic.runner, **params}
    if isinstance(one.last, Rejected):
        return {"timestamp": started, **_result(problem, configuration, one.last.t4, ())}
    samples = one.raced or one.looks
    result = {"timestamp": started, **_result(problem, configuration, CORRECT, [sample * 1e3 for sample in samples])}
    if one.last.error is not None and math.isfinite(one.last.error):
        result["measurements"].append({"name": "error", "value": one.last.error, "unit": ""})
    if one.last.bytes:
        result["measurements"].append({"name": "memory", "value": one.last.bytes, "unit": "bytes"})
    return result


def _result(problem: str, configuration: dict[str, Any], invalidity: str, runtimes: Iterable[float]) -> Result:
    """One result; `runtimes` in milliseconds, of which the median is its time."""
    taken = list(runtimes)
    return {
        "problem": problem,
        "configuration": configuration,
        "times": {"runtimes": taken},
        "invalidity": invalidity,
        "correctness": int(invalidity == CORRECT),
        "measurements": [{"name": "time", "value": median(taken), "unit": "ms"}] if taken else [],
        "objectives": ["time"],
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
