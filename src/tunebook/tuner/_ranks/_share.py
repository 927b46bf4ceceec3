"""Who tunes what: the problems that each rank saw, put together, and each given to one that saw it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from tunebook.ops import OpSpec
from tunebook.records import Offered
from tunebook.tuner._entrants import available_runners
from tunebook.tuner._passes import Todo
from tunebook.tuner._ranks._errors import ContradictionError
from tunebook.tuner._ranks._group import listed
from tunebook.tuner._tasks import Task
from tunebook.tuner._worth import MIN_WEIGHT

logger = logging.getLogger("tunebook.ranks")


class Seen(msgspec.Struct, frozen=True):
    """A problem as one rank met it: seconds of its default, whether it was called, and whether it is to be tuned.

    `default` is the version of the default there; `together`: its calls communicate, so all ranks race it in lock-step.
    """

    weight: float
    called: bool
    open: bool
    default: str
    together: bool


class Report(msgspec.Struct, frozen=True):
    """What one rank met: problems by key, and what each of their ops offers there."""

    problems: dict[str, Seen]
    ops: dict[str, dict[str, Offered]]


class Shares(msgspec.Struct, frozen=True):
    """What the leader makes of it. `tuned_by` gives the place of the rank that tunes each problem, by key; `together` are
    those that all ranks race; `left` names, by key, why one cannot be raced. `weights` are of all problems, the greatest of
    any rank; `seed` is for what must be random in the same way everywhere.
    """

    tuned_by: dict[str, int]
    together: list[str]
    left: dict[str, str]
    weights: dict[str, float]
    seed: int


def report(tasks: Sequence[Task], todo: Sequence[Todo]) -> Report:
    """What this rank says."""
    open_ones = {item.key for item in todo}
    specs: dict[str, OpSpec] = {task.spec.name: task.spec for task in tasks}
    return Report(
        {
            task.problem.key: Seen(
                task.weight,
                task.seen,
                task.problem.key in open_ones,
                task.family.layers[0].default_version,
                task.spec.communicates,
            )
            for task in tasks
        },
        {name: {r: runner.offered for r, runner in available_runners(spec).items()} for name, spec in specs.items()},
    )


def check_versions(names: Sequence[str], reports: Sequence[Report]) -> None:
    """Raise UsageError, on every rank, where two of them would run different code under the same name."""
    wrong: list[str] = []
    first_ops: dict[str, int] = {}
    first_keys: dict[str, int] = {}
    for place, mine in enumerate(reports):
        for op, offered in mine.ops.items():
            other = first_ops.setdefault(op, place)
            wrong += _unlike(op, names[place], offered, names[other], reports[other].ops[op])
        for key, seen in mine.problems.items():
            other = first_keys.setdefault(key, place)
            former = reports[other].problems[key]
            if (seen.default, seen.together) != (former.default, former.together):
                wrong.append(
                    f"{names[place]} has another default for {key} ({seen.default}) than {names[other]} "
                    f"({former.default})"
                )
    if wrong:
        raise ContradictionError(
            f"the ranks cannot tune together: {listed(dict.fromkeys(wrong))}; start all with the same"
        )


def _unlike(
    op: str, name: str, mine: Mapping[str, Offered], other: str, theirs: Mapping[str, Offered]
) -> Iterator[str]:
    for runner in sorted({*mine, *theirs}):
        one, two = mine.get(runner), theirs.get(runner)
        if one is None or two is None:
            lacks, has = (name, other) if one is None else (other, name)
            yield f"{lacks} lacks runner {runner} of op {op}, which {has} has"
        elif one.version != two.version:
            yield f"{name} has runner {runner} of op {op} in version {one.version}, {other} in {two.version}"
        elif one.space != two.space:
            yield f"{name} offers other tactics of runner {runner} of op {op} than {other}"


def share(names: Sequence[str], reports: Sequence[Report], devices: Sequence[str], seed: int) -> Shares:
    """Give each problem to a rank that met it, preferably in a call, the costliest first, so that devices end together.

    A problem whose calls communicate is for all ranks, and left out unless all of them met it.
    """
    weights: dict[str, float] = {}
    for one in reports:
        for key, seen in one.problems.items():
            weights[key] = max(weights.get(key, 0.0), seen.weight)
    tuned_by: dict[str, int] = {}
    together: list[str] = []
    left: dict[str, str] = {}
    busy = dict.fromkeys(devices, 0.0)
    load = [0.0] * len(names)
    count = [0] * len(names)
    for key in sorted(weights, key=lambda key: (-weights[key], key)):
        met = {place: one.problems[key] for place, one in enumerate(reports) if key in one.problems}
        if not any(seen.open for seen in met.values()):
            continue
        if any(seen.together for seen in met.values()):
            lacking = [names[place] for place in range(len(names)) if place not in met]
            if lacking:
                left[key] = f"its calls communicate, and {listed(lacking)} did not meet it"
            else:
                together.append(key)
            continue
        able = [place for place, seen in met.items() if seen.open]
        able = [place for place in able if met[place].called] or able
        place = min(able, key=lambda place: (busy[devices[place]], load[place], count[place], place))
        tuned_by[key] = place
        worth = max(weights[key], MIN_WEIGHT)
        busy[devices[place]] += worth
        load[place] += worth
        count[place] += 1
    return Shares(tuned_by, together, left, weights, seed)


def budgets(
    shares: Shares, devices: Sequence[str], me: int, budget_s: float | None
) -> tuple[float | None, float | None]:
    """Seconds for the problems that are raced together, and for those that rank `me` tunes in its turns on its device.

    Ranks on one device share its time; what is raced together takes the time of all devices.
    """
    if budget_s is None:
        return None, None

    def worth(keys: Sequence[str]) -> float:
        return sum(max(shares.weights[key], MIN_WEIGHT) for key in keys)

    here = worth([key for key, place in shares.tuned_by.items() if devices[place] == devices[me]])
    mine = worth([key for key, place in shares.tuned_by.items() if place == me])
    busiest = max(
        (worth([k for k, place in shares.tuned_by.items() if devices[place] == device]) for device in set(devices)),
        default=0.0,
    )
    both = worth(shares.together)
    together = budget_s * both / (both + busiest) if both else 0.0
    return together, (budget_s - together) * mine / here if here else 0.0
