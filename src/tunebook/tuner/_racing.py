"""Racing a line-up: met on every layer, raced, and raced again without a tactic that fails on the way."""

from __future__ import annotations

import random
from collections.abc import Callable

from tunebook.devices import Device
from tunebook.measure import Candidate, Effort, RaceResult, failure, race
from tunebook.records import DEFAULT, Tactic
from tunebook.tuner._lineup import Lineup


def race_lineup(
    lineup: Lineup,
    device: Device,
    rng: random.Random,
    effort: Effort,
    *,
    inner: int,
    rounds: int,
    stop: Callable[[], bool],
    earlier: RaceResult | None,
) -> RaceResult:
    """Race the line-up, on from `earlier` if given, up to so many `rounds` of `inner` calls a sample, or until `stop()`.

    Where a tactic fails on the way, all begins again without it: for it may have driven out others.
    """
    if not _met(lineup, device):
        earlier = None
    while True:
        bound: dict[str, Candidate] = {candidate.name: candidate for candidate in lineup.contenders}
        if earlier is not None:  # those that are out keep their samples, and are not called
            for entry in earlier.entries:
                entry.candidate = bound.get(entry.name, entry.candidate)
            bound = {entry.name: entry.candidate for entry in earlier.entries}
        else:
            lineup.journal.race(list(bound), inner, lineup.halved)
        result = race(
            list(bound.values()),
            DEFAULT.name,
            device,
            inner=inner,
            rng=rng,
            max_rounds=rounds,
            accepted_loss=effort.accepted_loss,
            stop=stop,
            earlier=earlier,
            watch=lineup.journal,
        )
        failed = {entry.name: entry.failed for entry in result.entries if entry.failed is not None}
        if not failed:
            return result
        for name, finding in failed.items():
            lineup.reject(Tactic.parse(name), finding)
        lineup.contenders = [candidate for candidate in lineup.contenders if candidate.name not in failed]
        earlier = None


def _met(lineup: Lineup, device: Device) -> bool:
    """Call each tactic once on every layer but the first, which its check met; who fails is rejected, and False tells so.

    Where memory allows few layers, on the first as well: its weights may have been prepared again since.
    Memory that lay idle for seconds, as prepared weights do while other tactics are checked, may take several times as
    long at its first touch (the host took it back, or its pages are not mapped yet). In service it does not lie idle.
    """
    count, first = len(lineup.contenders), 0 if lineup.cold or lineup.narrowed else 1
    lineup.cold = lineup.cold and not count
    for candidate in list(lineup.contenders):
        try:
            for call in candidate.calls[first:]:
                call()
            device.synchronize()  # else the next one is blamed for what this one does late
        except Exception as error:
            if candidate.tactic == DEFAULT:
                raise
            lineup.reject(candidate.tactic, failure(error, "before the race"))
            lineup.contenders.remove(candidate)
            device.synchronize()  # raises where the failure spoilt the device
    return len(lineup.contenders) == count
