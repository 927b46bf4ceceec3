"""The plan's choice: which weight layouts each family of layers keeps under a memory limit, and the tactic for each bucket."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunebook.records import DEFAULT, Member, Problem, Tactic, Verdict

#: Fewer bytes are preferred to a gain below this share of the family's time.
NEGLIGIBLE = 0.01
#: Of many layouts the ones that matter most alone are combined; more would double the subsets for each.
MAX_LAYOUTS = 8


@dataclass(frozen=True)
class Usable:
    """A problem's verdict today: its weight in seconds of the default, and the members of the frontier that may serve."""

    problem: str
    weight: float
    verdict: Verdict
    members: tuple[Member, ...]

    def best(self, layouts: frozenset[str]) -> tuple[Member | None, float]:
        """The fastest member on these layouts, and the expected seconds; None where the default serves."""
        fits = [m for m in self.members if not m.layout or m.layout in layouts]
        default = self.weight
        if not fits:
            return None, default
        # a tie may have the smaller ratio; the verdict settled that
        member = min(fits, key=lambda m: (max(m.ratio, 1.0), m.tactic != self.verdict.winner))
        seconds = self.weight / self.verdict.speedup * member.ratio
        return (member, seconds) if seconds < default or member.tactic == self.verdict.winner else (None, default)


@dataclass(frozen=True)
class Option:
    """A set of layouts for one family: what it costs in bytes over all its layers, and the expected seconds."""

    layouts: frozenset[str]
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Choices:
    """The tactic of every problem, the layouts of every family, and what they take together."""

    tactics: dict[str, Tactic]
    layouts: dict[str, tuple[str, ...]]
    bytes: int
    seconds: float


def choose_layouts(usable: Sequence[Usable], layers: Mapping[str, int], limit: int) -> Choices:
    """Minimise the expected time with at most `limit` bytes of prepared weights.

    `layers` counts the layers of each family. Every family's subsets of layouts are reduced to those that no other beats in
    both bytes and time; the families are then combined one after another, reduced in the same way (an exact solution of
    this multiple-choice knapsack).
    """
    families: dict[str, list[Usable]] = {}
    for item in usable:
        families.setdefault(Problem.parse(item.problem).family, []).append(item)
    combined: list[tuple[int, float, tuple[Option, ...]]] = [(0, 0.0, ())]
    for family, items in families.items():
        options = _options(items, layers.get(family, 1))
        grown = [(b + o.bytes, s + o.seconds, (*picked, o)) for b, s, picked in combined for o in options]
        combined = _undominated([entry for entry in grown if entry[0] <= limit] or grown[:1])
    fastest = min(entry[1] for entry in combined)
    total = sum(item.weight for item in usable)
    enough = [entry for entry in combined if entry[1] <= fastest + NEGLIGIBLE * total]
    used, seconds, picked = min(enough, key=lambda entry: (entry[0], entry[1]))
    tactics: dict[str, Tactic] = {}
    layouts: dict[str, tuple[str, ...]] = {}
    for (family, items), option in zip(families.items(), picked, strict=True):
        needed = set()
        for item in items:
            member, _ = item.best(option.layouts)
            tactics[item.problem] = Tactic.parse(member.tactic) if member else DEFAULT
            if member and member.layout:
                needed.add(member.layout)
        if needed:
            layouts[family] = tuple(sorted(needed))
    return Choices(tactics, layouts, used, seconds)


def _options(items: Sequence[Usable], layers: int) -> list[Option]:
    sizes: dict[str, int] = {}
    for item in items:
        for member in item.members:
            if member.layout:
                sizes[member.layout] = max(sizes.get(member.layout, 0), member.bytes)
    alone = {name: sum(item.best(frozenset((name,)))[1] for item in items) for name in sizes}
    names = sorted(sizes, key=lambda name: (alone[name], name))[:MAX_LAYOUTS]
    found = []
    for count in range(len(names) + 1):
        for subset in itertools.combinations(names, count):
            chosen = frozenset(subset)
            seconds = sum(item.best(chosen)[1] for item in items)
            found.append(Option(chosen, layers * sum(sizes[name] for name in subset), seconds))
    kept = _undominated([(o.bytes, o.seconds, (o,)) for o in found])
    return [entry[2][0] for entry in kept]


def _undominated(entries: list[tuple[int, float, tuple[Option, ...]]]) -> list[tuple[int, float, tuple[Option, ...]]]:
    """Those that no other entry beats in bytes without losing in seconds, by bytes."""
    kept: list[tuple[int, float, tuple[Option, ...]]] = []
    for entry in sorted(entries, key=lambda e: (e[0], e[1])):
        if not kept or entry[1] < kept[-1][1]:
            kept.append(entry)
    return kept
