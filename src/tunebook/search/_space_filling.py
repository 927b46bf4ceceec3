"""A space-filling order: whatever number of tactics is tried, they are spread over the whole space."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from tunebook.records import Scalar, Tactic

Levels = npt.NDArray[np.int64]
Points = npt.NDArray[np.float64]


def space_filling(tactics: Sequence[Tactic], rng: random.Random) -> Iterator[Tactic]:
    """All of `tactics`, once each, in an order of which every beginning is a design; the same one for the same `rng`.

    The next tactic is one that brings the most parameter values not tried yet; among those, one whose values were tried the
    least, each against its equal share; among those, the one farthest from all before it. So on a full grid the first n
    have every value of every parameter equally often, as far as n divides (a Latin hypercube: McKay, Beckman & Conover,
    Technometrics 21(2), 1979), and lie far apart (greedy maximin: Johnson, Moore & Ylvisaker, Journal of Statistical
    Planning and Inference 26, 1990; the two together: Morris & Mitchell, ibid. 43, 1995). An order, rather than a design of
    a fixed size, is what lets a sample grow for as long as there is time: Kennard & Stone, Technometrics 11(1), 1969.

    Each costs time in proportion to the size of the space; nothing is computed for those that are not asked for.
    """
    drawn = rng.sample(list(tactics), len(tactics))  # ties are settled by this order
    levels, points = _levels(drawn), _points(drawn)
    counts = levels.max(axis=0) + 1 if len(drawn) else np.zeros(0, dtype=np.int64)
    tried = [np.zeros(count) for count in counts]
    nearest = np.full(len(drawn), np.inf)
    left = np.ones(len(drawn), dtype=bool)
    for _ in drawn:
        fresh, crowd = np.zeros(len(drawn)), np.zeros(len(drawn))
        for parameter, used in enumerate(tried):
            times = used[levels[:, parameter]]
            fresh += times == 0
            crowd += times * counts[parameter]
        best = _greatest(left, fresh)
        best = _greatest(best, -crowd)
        chosen = int(np.argmax(np.where(best, nearest, -1.0)))
        left[chosen] = False
        for parameter, used in enumerate(tried):
            used[levels[chosen, parameter]] += 1
        nearest = np.minimum(nearest, np.square(points - points[chosen]).sum(axis=1))
        yield drawn[chosen]


def _greatest(among: npt.NDArray[np.bool_], figure: Points) -> npt.NDArray[np.bool_]:
    """Those of `among` whose figure is the greatest."""
    return np.asarray(among & (figure == figure[among].max()))


def _parameters(tactics: Sequence[Tactic]) -> list[str]:
    """The names of all parameters that vary."""
    names = dict.fromkeys(name for tactic in tactics for name, _ in tactic.params)
    return [name for name in names if len({_value(tactic, name) for tactic in tactics}) > 1]


def _value(tactic: Tactic, name: str) -> tuple[str, Scalar | None]:
    """A parameter's value, told apart by type too: ``True`` is not 1. None where the tactic lacks it."""
    value = tactic.kwargs.get(name)
    return type(value).__name__, value


def _levels(tactics: Sequence[Tactic]) -> Levels:
    """For each tactic the number of each parameter's value, [tactics, parameters]."""
    columns = []
    for name in _parameters(tactics):
        values = [_value(tactic, name) for tactic in tactics]
        numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
        columns.append([numbers[value] for value in values])
    return np.array(columns, dtype=np.int64).reshape(len(columns), len(tactics)).T


def _points(tactics: Sequence[Tactic]) -> Points:
    """Coordinates, [tactics, axes]: numbers by their rank from 0 to 1; any two other values are 1 apart."""
    axes: list[list[float]] = []
    for name in _parameters(tactics):
        values = [_value(tactic, name) for tactic in tactics]
        kinds = {kind for kind, _ in values}
        if kinds <= {"int", "float"}:
            ranks = {value: rank for rank, value in enumerate(sorted(set(values), key=lambda v: (v[1], v[0])))}
            axes.append([ranks[value] / (len(ranks) - 1) for value in values])
        else:
            axes += [[(value == one) * 0.5**0.5 for value in values] for one in dict.fromkeys(values)]
    return np.array(axes, dtype=float).reshape(len(axes), len(tactics)).T
