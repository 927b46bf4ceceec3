"""Going on with a problem where another process was interrupted: its line-up and its race as the run file tells them."""

from __future__ import annotations

from dataclasses import dataclass

from tunebook.measure import SCREENING, Entry, RaceResult
from tunebook.ops import OpSpec
from tunebook.records import DEFAULT, Tactic
from tunebook.store import Recorded, RecordedRace
from tunebook.tuner._entrants import Field
from tunebook.tuner._lineup import Lineup
from tunebook.tuner._replicas import Contender


@dataclass(frozen=True)
class Restored:
    """What is left to be done: `entered` says that all who race are known, `race` is theirs so far, `inner` its calls a sample.

    The race's last round may be cut short.
    """

    entered: bool = False
    race: RaceResult | None = None
    inner: int = 0


def restore(lineup: Lineup, field: Field, spec: OpSpec, known: Recorded) -> Restored:
    """Put into a new line-up what is known of its tactics: those that passed and those that were rejected are not tried again."""
    tactics = {tactic.name: tactic for tactic in (*field.first, *(t for queue in field.queues for t in queue))}
    order = lineup.order
    tried = {name for name in (*known.passed, *known.rejected) if name in tactics and name != DEFAULT.name}
    lineup.order = (tactic for tactic in order if tactic.name not in tried)
    lineup.seen += len(tried)
    lineup.rejected += [known.rejected[name] for name in known.rejected if name in tried]
    if DEFAULT.name in known.passed:
        lineup.looks[DEFAULT.name] = list(known.passed[DEFAULT.name].looks)
    for name, looked in known.passed.items():
        if name not in tried or name in known.rejected:
            continue
        lineup.admitted[name] = _at_rest(tactics[name], looked.line.bytes, spec)
        lineup.looks[name] = list(looked.looks)
        lineup.workspaces[name] = looked.line.workspace
        if looked.fair:
            lineup.fair.add(name)
    lineup.cold = bool(lineup.admitted)
    if not known.races or not {*known.races[-1].line.tactics} <= {DEFAULT.name, *tactics}:
        _take_turns_again(lineup)
        return Restored()
    return _race(lineup, known)


def _take_turns_again(lineup: Lineup) -> None:
    """Halving was not finished: it is done again with the turns that were measured."""
    for name in lineup.admitted:
        first, *turns = lineup.looks[name]
        lineup.looks[name], lineup.turns[name] = [first], turns


def _race(lineup: Lineup, known: Recorded) -> Restored:
    """The last race goes on, or begins again without those that failed in it. Newcomers were to race with its survivors."""
    *former, last = known.races
    for race in former:
        for name, samples in race.seconds.items():
            if samples and name in lineup.admitted and name not in last.line.tactics:
                rounds = [SCREENING] * len(samples)  # they pair with no round of a later race
                lineup.former[name] = Entry(lineup.admitted[name], list(samples), rounds)
    racing = [name for name in last.line.tactics if name in lineup.admitted]
    for name in set(lineup.admitted) - {*racing, *last.newcomers}:
        candidate = lineup.admitted.pop(name)
        if name not in lineup.former:
            lineup.screened[name] = candidate
    lineup.halved = last.line.halved
    if len(racing) + 1 < len(last.line.tactics):
        return Restored(entered=not last.newcomers, inner=last.line.inner)
    result = _so_far(lineup, last)
    if result is None:
        return Restored(entered=not last.newcomers, inner=last.line.inner)
    left = {entry.name for entry in result.survivors}
    for name in set(racing) - left:
        del lineup.admitted[name]
    return Restored(entered=not last.newcomers, race=result, inner=last.line.inner)


def _so_far(lineup: Lineup, race: RecordedRace) -> RaceResult | None:
    """The race; None where samples lack, so that it cannot go on."""
    entries = []
    for name, samples in race.seconds.items():
        candidate = lineup.admitted[name] if name != DEFAULT.name else _at_rest(DEFAULT, 0, None)
        entries.append(Entry(candidate, list(samples), [number - race.line.first for number in race.rounds[name]]))
    default = next(entry for entry in entries if entry.name == DEFAULT.name)
    alive = tuple(entry for entry in entries if entry.name not in race.out) or (default,)
    rounds = min(len(entry.samples) for entry in (default, *alive))
    if any(entry.rounds != list(range(len(entry.rounds))) or len(entry.rounds) > rounds + 1 for entry in entries):
        return None
    return RaceResult(tuple(entries), alive, default, rounds, "time", 0.0, (0.0,) * len(alive))


def _at_rest(tactic: Tactic, size: int, spec: OpSpec | None) -> Contender:
    """A tactic that is not bound to anything."""
    runner = spec.runner_of(tactic) if spec is not None else None
    return Contender(tactic, runner.layout_of(tactic) if runner is not None else "", size, ())
