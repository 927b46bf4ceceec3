"""Sizes that nothing was measured for: where results must not depend on the batch, they need a tactic too."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from tunebook.dispatch import Binding
from tunebook.errors import UsageError
from tunebook.ops import OpSpec
from tunebook.plan._layouts import Choices
from tunebook.plan._lend import distance
from tunebook.records import Dim, Problem, Tactic

#: Sizes up to this one are served without being measured; no step holds so many tokens.
LARGEST = 1 << 20
#: A family with more buckets than this cannot be served everywhere.
MOST_BUCKETS = 4096
#: What to do about an op that cannot give one result whatever the batch.
REMEDY = "leave the op out (tunebook tune: name the others with --op), or do without --batch-invariant"


def buckets(spec: OpSpec, sample: Problem) -> list[tuple[Dim, ...]] | None:
    """The sizes of every bucket of a family up to `LARGEST`; None where they are too many."""
    grids: list[list[Dim]] = []
    for dim in sample.dims:
        rule = spec.shape.by_name[dim.name]
        sizes = itertools.islice(rule.up_to(LARGEST) if rule.rounding == "up" else range(LARGEST), MOST_BUCKETS + 1)
        grids.append([Dim(name=dim.name, size=size, rounding=rule.rounding, rule=rule.rule) for size in sizes])
    if math.prod(map(len, grids)) > MOST_BUCKETS:
        return None
    return list(itertools.product(*grids))


def everywhere(choices: Choices, families: Mapping[Binding, tuple[str, ...]]) -> dict[str, Tactic]:
    """A tactic for every bucket of the families that must give equal bits everywhere: that of the nearest that fits it.

    Raises UsageError that names a family of which a bucket has none.
    """
    specs = {family: binding.spec for binding, names in families.items() for family in names}
    found: dict[str, Tactic] = {}
    for family in choices.numerics:
        known = [(Problem.parse(key), tactic) for key, tactic in choices.tactics.items()]
        mine = [(problem, tactic) for problem, tactic in known if problem.family == family]
        sample = mine[0][0]
        grid = buckets(specs[family], sample)
        if grid is None:
            raise UsageError(
                f"op {sample.op}, {family}: too many sizes to give one result whatever the batch; {REMEDY}"
            )
        for dims in grid:
            problem = Problem(op=sample.op, attrs=sample.attrs, dtypes=sample.dtypes, dims=dims, policy=sample.policy)
            found[problem.key] = _nearest(problem, mine, specs[family])
    return found


def _nearest(problem: Problem, known: Sequence[tuple[Problem, Tactic]], spec: OpSpec) -> Tactic:
    for _, tactic in sorted(known, key=lambda item: (distance(problem, item[0]), item[0].key)):
        runner = spec.runner_of(tactic)
        if runner is not None and runner.refusal(tactic, problem) is None:
            return tactic
    raise UsageError(f"{problem}: nothing serves this size with the result of the others; {REMEDY}")
