"""How `tunebook repro` tells its outcome: what was run, whether it is right, what it takes now and took then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tunebook._figures import duration, size
from tunebook.cli._output import say
from tunebook.cli._text import clean
from tunebook.measure import Finding, Passed
from tunebook.records import DEFAULT, Scalar

if TYPE_CHECKING:
    from tunebook.book.repro import Measured, Told, Trial
    from tunebook.cli._profilers import Profiler
    from tunebook.stats import Interval

#: Errors within this factor of each other are alike: one is of random inputs, the other the worst of several live ones.
ALIKE = 4.0
#: Errors below this are none.
_NO_ERROR = 1e-9


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A trial that was run. `process` is its command line, `version` that of the tactic's code now."""

    trial: Trial
    measured: Measured
    told: Told | None
    sizes: Mapping[str, int]
    options: Mapping[str, Scalar]
    seed: int
    version: str
    process: str
    profilers: Sequence[Profiler]

    @property
    def wrong(self) -> str | None:
        """What is wrong with the output, or None."""
        return self.trial.found.detail if isinstance(self.trial.found, Finding) else None

    @property
    def error(self) -> float | None:
        """The greatest relative error of a row; None for a wrong output, and for the default, which is what is right."""
        return self.trial.found.error if isinstance(self.trial.found, Passed) else None

    @property
    def alike(self) -> bool | None:
        """Whether the check of the run came to the same; None where there is nothing to compare."""
        if self.told is None or self.trial.found is None:
            return None
        if self.told.rejected is not None and self.told.rejected.reason == "correctness":
            return self.wrong is not None
        if self.told.error is None:
            return None
        if self.error is None:
            return False
        low, high = sorted((max(self.error, _NO_ERROR), max(self.told.error, _NO_ERROR)))
        return high <= ALIKE * low

    def notes(self) -> Iterator[str]:
        """What to bear in mind when the two figures are compared."""
        trial, told = self.trial, self.told
        if trial.weights and not trial.cold:
            yield "the weights are so few that they stay in caches; a tuning makes them cold before it times a call"
        if told is None or told.empty:
            whose = (
                f"{clean(told.path)} tells nothing of this tactic on this problem" if told else "there is no run yet"
            )
            yield f"{whose}, so that there is nothing to compare with"
        if told is None:
            return
        if told.version is not None and told.version != self.version:
            then = clean(told.version)
            if trial.name == DEFAULT.name:
                yield f"the default here is the op's own function; then it was {then}"
            else:
                yield f"the code is another one: version {then} then, {self.version} now"
        if told.environment is not None:
            for difference in told.environment.differences(trial.device.environment()):
                yield f"another environment, then ≠ now: {clean(difference)}"
        if told.rejected is not None:
            yield f"it was rejected then ({told.rejected.reason}: {clean(told.rejected.detail)})"
        exact = {dim.name: dim.size for dim in trial.problem.dims}
        for name, value in self.sizes.items():
            if told.seconds is not None and value != exact[name]:
                yield f"{name}={value} here; a tuning times {name}={exact[name]}"


def document(outcome: Outcome) -> dict[str, Any]:
    """All of it as plain values."""
    trial, measured = outcome.trial, outcome.measured
    return {
        "problem": trial.problem.key,
        "tactic": trial.name,
        "device": trial.device.name,
        "inputs": {
            "seed": outcome.seed,
            "sizes": dict(outcome.sizes),
            "of": _whose(outcome),
            "options": dict(outcome.options),
            "arguments": dict(trial.args),
        },
        "layers": len(trial.calls),
        "weights": {
            "bytes": trial.weights,
            "layout": trial.layout,
            "prepared_bytes": trial.prepared,
            "cold": trial.cold,
        },
        "check": {
            "agrees": outcome.wrong is None,
            "detail": outcome.wrong,
            "error": outcome.error,
            "error_then": outcome.told.error if outcome.told else None,
            "alike": outcome.alike,
        },
        "measured": {
            **_interval(measured.interval),
            "samples": len(measured.samples),
            "calls": measured.calls,
            "calls_a_sample": measured.inner,
        },
        "recorded": _recorded(outcome.told),
        "notes": list(outcome.notes()),
        "process": outcome.process,
        "profilers": [asdict(profiler) for profiler in outcome.profilers],
    }


def _recorded(told: Told | None) -> dict[str, Any] | None:
    if told is None or told.empty:
        return None
    rejected = told.rejected
    return {
        "path": str(told.path),
        "model": told.model,
        "how": told.how,
        **(_interval(told.seconds) if told.seconds is not None else {}),
        "samples": told.samples,
        "default": _interval(told.default) if told.default is not None else None,
        "rejected": None if rejected is None else {"reason": rejected.reason, "detail": rejected.detail},
    }


def _interval(found: Interval) -> dict[str, float]:
    return {"seconds": found.value, "low": found.low, "high": found.high}


def print_outcome(outcome: Outcome) -> None:
    """The same for people. Commands come last and are not folded, so that they can be copied."""
    trial, measured, told = outcome.trial, outcome.measured, outcome.told
    say(clean(trial.problem))
    say(f"  tactic: {trial.name}")
    say(f"  inputs: made again from the key, seed {outcome.seed}, {_whose(outcome)}")
    for name, shown in trial.args.items():
        say(f"    {name} {clean(shown)}")
    say(f"  layers: {_layers(trial)}")
    say(f"  output: {_checked(outcome)}")
    say(f"  now:    {_time(measured.interval)} a call, {measured.calls:,} calls in {len(measured.samples):,} samples")
    if told is not None and told.seconds is not None:
        say(f"  then:   {_time(told.seconds)} a call, {_source(told)}, {clean(told.path)}")
    if told is not None and told.default is not None and trial.name != DEFAULT.name:
        where = "there too" if told.seconds is not None else clean(told.path)
        say(f"  {'' if told.seconds is not None else 'then:':7} {_time(told.default)} the default, {where}")
    for note in outcome.notes():
        say(f"  note: {note}")
    say("\nThis process alone, under a profiler:")
    for profiler in outcome.profilers:
        missing = "" if profiler.installed else f" ({profiler.tool} is not on the PATH here)"
        say(f"\n  # {profiler.about}{missing}")
        say(f"  {profiler.command}")
    say("\n  # to attach one of your own choice")
    say(f"  {outcome.process} --wait")


def _whose(outcome: Outcome) -> str:
    """The sizes, and where they come from."""
    sizes = ", ".join(f"{name}={value}" for name, value in outcome.sizes.items()) or "no size"
    if any(outcome.sizes[dim.name] != dim.size for dim in outcome.trial.problem.dims):
        return f"{sizes} as asked for"
    return f"{sizes}, the bucket's own size, at which tunings time it"


def _layers(trial: Trial) -> str:
    count = len(trial.calls)
    if not trial.weights:
        return f"{count} inputs in turn, no weights" if count > 1 else "one input, no weights"
    layout = f", prepared as {trial.layout} ({size(trial.prepared)})" if trial.layout else ""
    return f"{count}{' in turn' if count > 1 else ''}, weights {size(trial.weights)}{layout}"


def _checked(outcome: Outcome) -> str:
    found, told = outcome.trial.found, outcome.told
    if found is None:
        return "the default's own is what is right"
    if isinstance(found, Finding):
        text = f"WRONG, {found.detail}"
    else:
        text = f"agrees with the default, greatest error of a row {found.error:.2g}"
    then = f" (then {told.error:.2g})" if told is not None and told.error is not None else ""
    words = {True: "; as in the run's check", False: "; the run's check came to another result", None: ""}
    return f"{text}{words[outcome.alike]}{then}"


def _source(told: Told) -> str:
    if told.how == "verdict":
        return "by the verdict alone, without an interval"
    calls = "samples" if told.how == "race" else "calls before the race"
    return f"{told.samples} {calls}"


def _time(found: Interval) -> str:
    if found.low == found.high:
        return duration(found.value)
    return f"{duration(found.value)} [{duration(found.low)}, {duration(found.high)}]"
