"""From what was collected to what is tuned: every bucket up to the largest size seen, each with its weight, costliest first."""

from __future__ import annotations

import itertools
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunebook.dispatch import Binding
from tunebook.measure import Case, Clock
from tunebook.ops import OpSpec
from tunebook.records import Dim, Problem
from tunebook.tuner._collect import Collection, Family

logger = logging.getLogger("tunebook.tuner")

#: A bucket that the dummy run did not meet counts this much of what its neighbour would cost.
UNSEEN_WEIGHT = 0.25
#: All buckets up to the largest size are tuned while they (their product, for several dimensions) are this few, else what
#: was met: so for `exact` rules on long inputs.
MAX_BUCKETS = 128


@dataclass(frozen=True)
class Task:
    """A problem to settle: its exact sizes (the bucket's upper edge), and its weight in seconds of the default."""

    family: Family
    problem: Problem
    weight: float
    seen: bool

    @property
    def calls(self) -> int:
        """How often the dummy run met it."""
        observed = self.family.observed.get(self.problem.key)
        return observed.calls if observed else 0

    @property
    def spec(self) -> OpSpec:
        spec: OpSpec = self.family.spec
        return spec

    @property
    def sizes(self) -> dict[str, int]:
        return {dim.name: dim.size for dim in self.problem.dims}

    def edge_sizes(self) -> list[dict[str, int]]:
        """The sizes at both edges of the bucket and one between, each once, the upper edge last: where tactics must be right."""
        shape, largest = self.spec.shape, self.family.largest()
        edges = {d.name: shape.by_name[d.name].edges(d.size, largest.get(d.name, d.size)) for d in self.problem.dims}
        low = {name: edge[0] for name, edge in edges.items()}
        high = {name: edge[1] for name, edge in edges.items()}
        ragged = {name: edge[0] + (edge[1] - edge[0]) // 2 for name, edge in edges.items()}
        unique = {tuple(sorted(sizes.items())): sizes for sizes in (ragged, low) if sizes != high}
        return [*unique.values(), high]

    def inputs(self, sizes: Mapping[str, int], rng: random.Random, layers: Sequence[Binding]) -> list[tuple[Any, ...]]:
        """Dynamic arguments of these sizes for each layer: its own live ones where they fit, else drawn from live rows."""
        wanted = tuple(sizes.items())
        observed = self.family.observed.get(self.problem.key)
        exact = observed.inputs if observed is not None and set(observed.sizes) == {wanted} else {}
        return [exact.get(id(layer)) or self.spec.shape.resample(self._source(layer), sizes, rng) for layer in layers]

    def cases(self, rng: random.Random, layer: Binding, clock: Clock) -> list[Case]:
        """What a tactic must get right on `layer`: the edges of the bucket, a size between, and the op's extremes.

        What is right says the default; what it raises at an edge is the caller's, an extreme that it does not cover is left
        out. The upper edge comes last: the call on it is a tactic's first look. Raises OpError for extremes that are no
        calls of this problem.
        """
        *others, high = self.edge_sizes()
        cases = [_timed(clock, layer, self.inputs(sizes, rng, [layer])[0], _label(sizes)) for sizes in others]
        (largest,) = self.inputs(high, rng, [layer])
        cases += self._extremes(rng, layer, largest, _label(high))
        return [*cases, _timed(clock, layer, largest, _label(high))]

    def _extremes(self, rng: random.Random, layer: Binding, live: tuple[Any, ...], where: str) -> Iterator[Case]:
        """The op's extremes that the default covers: those on which it gives what the op's own function gives.

        A model's module may stand for the op without taking all that the op does (no choice without an expert, say). It need
        not raise then: what it leaves unwritten in its output is no reference.
        """
        for label, args in self.spec.extreme_inputs(self.problem, live, layer.constants, rng):
            try:
                case = _case(layer, args, f"{where}, {label}")
                uncovered = case.compared(self.spec.function(*args, *layer.constants))
            except Exception as error:  # noqa: BLE001 - whatever a default raises on what it was never called with
                uncovered = f"{type(error).__name__}: {error}"
            if isinstance(uncovered, str):
                logger.debug(
                    "%s: not checked on %s, which the default does not cover: %s", self.problem, label, uncovered
                )
                continue
            yield case

    def _source(self, layer: Binding) -> tuple[Any, ...]:
        """A live input of this layer, else of any: of the nearest size above first."""
        mine = math.prod(self.sizes.values())

        def distance(observation: Any) -> tuple[bool, bool, float]:
            size = math.prod(dim.size for dim in observation.problem.dims)
            return (id(layer) not in observation.inputs, size < mine, abs(math.log(size / mine)))

        best = min((o for o in self.family.observed.values() if o.inputs), key=distance)
        return best.inputs.get(id(layer)) or next(iter(best.inputs.values()))


def _case(layer: Binding, args: tuple[Any, ...], label: str) -> Case:
    return Case(args, layer.default(*args), label, agree=layer.spec.agree)


def _timed(clock: Clock, layer: Binding, args: tuple[Any, ...], label: str) -> Case:
    clock.synchronize()
    start = clock.clock()
    expected = layer.default(*args)
    clock.synchronize()
    return Case(args, expected, label, clock.clock() - start, layer.spec.agree)


def _label(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items()) or "its only size"


def tasks(collection: Collection) -> list[Task]:
    """All tasks, those that hold most of the default's time first."""
    found = [task for family in collection.families.values() for task in _family_tasks(family)]
    return sorted(found, key=lambda task: (-task.weight, task.problem.key))


def _family_tasks(family: Family) -> Iterator[Task]:
    problems = {problem.key: problem for problem in _problems(family)}
    for key, problem in problems.items():
        observed = family.observed.get(key)
        if observed is not None and observed.calls:
            yield Task(family, problem, observed.seconds, seen=True)
        else:
            yield Task(family, problem, UNSEEN_WEIGHT * _neighbour(family, problem), seen=False)


def _problems(family: Family) -> Iterator[Problem]:
    """What was met, and every bucket up to the largest size met."""
    sample = next(iter(family.observed.values())).problem
    shape, largest = family.spec.shape, family.largest()
    grids: list[list[Dim]] = []
    for dim in sample.dims:
        rule = shape.by_name[dim.name]
        grids.append([dim.__class__(name=dim.name, size=size, rounding=rule.rounding, rule=rule.rule)
                      for size in rule.up_to(largest[dim.name])])  # fmt: skip
    if math.prod(map(len, grids)) <= MAX_BUCKETS:
        for dims in itertools.product(*grids):
            yield Problem(op=sample.op, attrs=sample.attrs, dtypes=sample.dtypes, dims=dims, policy=sample.policy)
    for observation in family.observed.values():
        yield observation.problem


def _neighbour(family: Family, problem: Problem) -> float:
    """Seconds of the nearest bucket that was met, on a logarithmic scale."""
    size = math.prod(dim.size for dim in problem.dims)

    def distance(observation: Any) -> float:
        return abs(math.log(math.prod(dim.size for dim in observation.problem.dims) / size))

    return min(family.observed.values(), key=distance).seconds
