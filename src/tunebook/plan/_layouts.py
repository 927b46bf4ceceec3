"""The plan's choice: which weight layouts each family keeps under a memory limit, which originals go, and the tactics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tunebook.plan._families import FamilyChoice, Option, Usable, Weights
from tunebook.records import DEFAULT, Problem, Tactic

#: Fewer bytes are preferred to a gain below this share of the whole time.
NEGLIGIBLE = 0.01


@dataclass(frozen=True)
class Choices:
    """The tactic of every problem, the layouts of every family, and what they take together.

    `bytes` are the prepared weights less the originals that are released; `prepared` are all of them. `sources` gives, by
    family whose originals are released, the tactic whose layout they can be made from again; `numerics`, by family, what
    gives equal bits whatever the batch, where that was asked for. `barred` are tactics that were given back because the
    whole model is slower with them, by problem.
    """

    tactics: dict[str, Tactic]
    layouts: dict[str, tuple[str, ...]]
    bytes: int
    seconds: float
    prepared: int = 0
    sources: dict[str, Tactic] = field(default_factory=dict)
    numerics: dict[str, str] = field(default_factory=dict)
    barred: dict[str, frozenset[str]] = field(default_factory=dict)


def choose_layouts(
    usable: Sequence[Usable],
    weights: Mapping[str, Weights],
    limit: int,
    *,
    invariant: bool = False,
    fixed: Choices | None = None,
    free: Sequence[str] = (),
) -> Choices | None:
    """Minimise the expected time with at most `limit` bytes beside the unattached model's.

    An option of a family is a set of layouts, and its originals kept or released. Where they are released the default and
    tactics on the model's own weights cannot serve, and a layout must be held from which they can be made again. Every
    family's options are reduced to those that no other beats in both bytes and time; the families are then combined one
    after another, reduced in the same way (an exact solution of this multiple-choice knapsack).

    invariant: each family is served by tactics that give equal bits whatever the batch, never by the default.
    fixed: keep what these choices hold, but for the families named in `free`.

    None where nothing fits: only for `invariant` or `fixed`.
    """
    families = by_family(usable, weights, invariant=invariant)
    offered: list[list[Option]] = []
    for family, choice in families.items():
        if fixed is None or family in free:
            offered.append(choice.options())
        else:
            kept = fixed.layouts.get(family, ())
            offered.append(choice.like(kept, family in fixed.sources, fixed.numerics.get(family, "")))
    picked = _combine(offered, limit, NEGLIGIBLE * sum(item.weight for item in usable))
    return None if picked is None else _choices(families, picked)


def by_family(
    usable: Sequence[Usable], weights: Mapping[str, Weights], *, invariant: bool = False
) -> dict[str, FamilyChoice]:
    """What each family may be served with."""
    grouped: dict[str, list[Usable]] = {}
    for item in usable:
        grouped.setdefault(Problem.parse(item.problem).family, []).append(item)
    return {
        family: FamilyChoice(items, weights.get(family, Weights()), invariant=invariant)
        for family, items in grouped.items()
    }


def _choices(families: Mapping[str, FamilyChoice], picked: Sequence[Option]) -> Choices:
    tactics: dict[str, Tactic] = {}
    layouts: dict[str, tuple[str, ...]] = {}
    prepared = 0
    for (family, choice), option in zip(families.items(), picked, strict=True):
        for key, member in choice.members(option).items():
            tactics[key] = Tactic.parse(member.tactic) if member else DEFAULT
        kept = choice.kept(option)
        prepared += sum(choice.bytes[name] for name in kept)
        if kept:
            layouts[family] = kept
    used = list(zip(families.items(), picked, strict=True))
    freed = sum(choice.weights.releasable for (_, choice), option in used if option.released)
    return Choices(
        tactics=tactics,
        layouts=layouts,
        bytes=prepared - freed,
        seconds=float(sum(option.seconds for option in picked)),
        prepared=prepared,
        sources={family: choice.source(option) for (family, choice), option in used if option.released},
        numerics={family: option.numerics for (family, _), option in used if option.numerics},
        barred={item.problem: item.barred for choice in families.values() for item in choice.items if item.barred},
    )


def _combine(offered: Sequence[Sequence[Option]], limit: int, margin: float) -> list[Option] | None:
    """One option of each family: the fewest bytes within `margin` of the least time that `limit` bytes allow.

    Less than the unattached model takes is worth no time: of what fits into that, the fastest.
    """
    if not all(offered):
        return None
    least = [min(option.bytes for option in options) for options in offered]
    taken, seconds = np.zeros(1, dtype=np.int64), np.zeros(1)
    steps: list[tuple[np.ndarray, int]] = []
    for index, options in enumerate(offered):
        room = limit - sum(least[index + 1 :])
        bytes_ = np.array([option.bytes for option in options], dtype=np.int64)
        times = np.array([option.seconds for option in options])
        sums, totals = (taken[:, None] + bytes_).ravel(), (seconds[:, None] + times).ravel()
        order = np.lexsort((totals, sums))
        order = order[sums[order] <= room]
        before = np.concatenate(([np.inf], np.minimum.accumulate(totals[order])[:-1])) if len(order) else order
        order = order[totals[order] < before]
        if not len(order):
            return None
        taken, seconds = sums[order], totals[order]
        steps.append((order, len(options)))
    enough = np.flatnonzero(seconds <= seconds.min() + margin)
    fewest = max(0, int(taken[enough[0]]))
    place = int(np.flatnonzero(taken <= fewest)[-1])  # sorted by bytes, and faster with each
    picked: list[Option] = []
    for (order, count), options in zip(reversed(steps), reversed(offered), strict=True):
        place, choice = divmod(int(order[place]), count)
        picked.append(options[choice])
    return picked[::-1]
