"""What one family of layers may be served with: sets of weight layouts, beside the original weights or in their place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tunebook.records import DEFAULT, Member, Tactic, Verdict
from tunebook.tuner import PINNED

#: Of many layouts the ones that matter most alone are combined; more would double the subsets for each.
MAX_LAYOUTS = 8


@dataclass(frozen=True)
class Usable:
    """A problem's verdict today: its weight (what the default takes), and the members of the frontier that may serve.

    `borrowed` are tactics of other sizes that may serve it on layouts for which it has no member; `barred` the tactics that
    make the whole model slower: the default serves instead, where it can. `numerics` names, by tactic, what gives equal bits
    whatever the batch.
    """

    problem: str
    weight: float
    verdict: Verdict
    members: tuple[Member, ...]
    borrowed: tuple[Member, ...] = ()
    barred: frozenset[str] = frozenset()
    numerics: Mapping[str, str] = field(default_factory=dict)

    @property
    def pinned(self) -> bool:
        """Whether a user's pin decides: its tactic serves, nothing else, and whatever it needs is prepared."""
        return self.verdict.note == PINNED

    def seconds(self, member: Member | None) -> float:
        """The expected time of a member, or of the default, in the unit of the weight."""
        return self.weight if member is None else self.weight / self.verdict.speedup * reckoned(member, self.verdict)


def reckoned(member: Member, verdict: Verdict) -> float:
    """A member's time over the winner's as a plan reckons with it: between its ratio and the end of its interval, at least 1.

    A member that left after a look or two has a wide interval, and may seem faster than a winner of many rounds.
    """
    return 1.0 if member.tactic == verdict.winner else max(1.0, math.sqrt(member.ratio * member.high))


@dataclass(frozen=True)
class Weights:
    """The weights of one family: how many layers share it, the bytes that releasing their originals frees, and the layouts
    from which these can be made again (whose tactics serve every shape)."""

    layers: int = 1
    releasable: int = 0
    restores: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Option:
    """One way to serve a family: its layouts, its originals released or kept, what it costs in bytes, and the expected time.

    `numerics` is the class of tactics that alone may serve it, where the result must not depend on the batch.
    """

    layouts: frozenset[str]
    released: bool
    bytes: int
    seconds: float
    numerics: str = ""


class FamilyChoice:
    """All that one family may be served with. `invariant`: by tactics that give equal bits whatever the batch."""

    def __init__(self, items: Sequence[Usable], weights: Weights, *, invariant: bool = False) -> None:
        self.items = tuple(items)
        self.weights = weights
        self.sizes: dict[str, int] = {}  #: bytes of a layout in one layer
        for item in items:
            for member in (*item.members, *item.borrowed):
                if member.layout:
                    self.sizes[member.layout] = max(self.sizes.get(member.layout, 0), member.bytes)
        classes = sorted({name for item in items for name in item.numerics.values()}) if invariant else [""]
        modes = (False, True) if weights.releasable else (False,)
        self._modes = [(released, name) for released in modes for name in classes]
        self._names = self._foremost()
        self._all = [option for mode in self._modes for option in self._options(*mode)]

    @property
    def bytes(self) -> dict[str, int]:
        """What each layout takes over all layers."""
        return {name: size * self.weights.layers for name, size in self.sizes.items()}

    def options(self) -> list[Option]:
        """Those that no other beats in bytes without losing time."""
        return _undominated(self._all)

    def like(self, layouts: Sequence[str], released: bool, numerics: str = "") -> list[Option]:
        """The option with just these layouts; none where it cannot serve."""
        wanted = (frozenset(layouts), released, numerics)
        return [option for option in self._all if (option.layouts, option.released, option.numerics) == wanted]

    def without(self, layout: str, option: Option) -> float:
        """The expected time of an option without one of its layouts; the originals come back where nothing else can."""
        rest = option.layouts - {layout}
        released = option.released and bool(rest & self.weights.restores)
        numerics = "" if not rest and not released else option.numerics
        return sum(item.seconds(_best(item, rest, released, numerics)) for item in self.items)

    def members(self, option: Option) -> dict[str, Member | None]:
        """What serves each problem under an option; None is the default."""
        return {item.problem: _best(item, option.layouts, option.released, option.numerics) for item in self.items}

    def kept(self, option: Option) -> tuple[str, ...]:
        """The layouts of an option that are needed: those that serve, and one from which released originals can be made."""
        needed = {member.layout for member in self.members(option).values() if member and member.layout}
        if option.released and not needed & self.weights.restores:
            needed.add(min(option.layouts & self.weights.restores, key=lambda name: (self.sizes[name], name)))
        return tuple(sorted(needed))

    def source(self, option: Option) -> Tactic:
        """Of a released option, the tactic whose layout the originals can be made from again: the costliest problem's."""
        kept = self.weights.restores & set(self.kept(option))
        heavy = sorted(self.items, key=lambda item: (-item.weight, item.problem))
        chosen = self.members(option)
        serving = [chosen[item.problem] for item in heavy]
        known = [member for item in heavy for member in (*item.members, *item.borrowed)]
        return Tactic.parse(next(m.tactic for m in (*serving, *known) if m is not None and m.layout in kept))

    def _foremost(self) -> tuple[str, ...]:
        """The layouts that are combined: those that gain most alone, one that originals can be made from among them."""
        alone = {
            name: sum(item.seconds(_best(item, frozenset((name,)), False, "")) for item in self.items)
            for name in self.sizes
        }
        ranked = sorted(self.sizes, key=lambda name: (alone[name], name))
        general = [name for name in ranked if name in self.weights.restores]
        foremost = ranked[:MAX_LAYOUTS]
        if general and not set(general) & set(foremost):
            foremost[-1] = general[0]
        return tuple(foremost)

    def _options(self, released: bool, numerics: str) -> Iterator[Option]:
        """Every subset of the layouts that can serve all problems."""
        names = self._names
        masks = np.arange(1 << len(names))
        total = np.zeros(len(masks))
        for item in self.items:
            total += _by_subset(item, names, masks, released, numerics)
        sizes = sum(
            ((masks >> bit & 1) * self.sizes[name] * self.weights.layers for bit, name in enumerate(names)),
            np.zeros(len(masks), dtype=np.int64),
        )
        general = sum(1 << bit for bit, name in enumerate(names) if name in self.weights.restores)
        for mask in masks.tolist():
            if not math.isfinite(total[mask]) or (released and not mask & general):
                continue
            chosen = frozenset(name for bit, name in enumerate(names) if mask >> bit & 1)
            freed = self.weights.releasable if released else 0
            yield Option(chosen, released, int(sizes[mask]) - freed, float(total[mask]), numerics)


def _by_subset(item: Usable, names: Sequence[str], masks: np.ndarray, released: bool, numerics: str) -> np.ndarray:
    """The expected time of a problem under each subset of layouts; infinite where nothing can serve it."""
    free = not (released or numerics or item.pinned)
    found = np.full(len(masks), item.weight if free else np.inf)
    for member in reversed(_ranked(item, released, numerics)):  # the better one overwrites
        seconds = item.seconds(_worth(item, member, released, numerics))
        if not member.layout:
            found[:] = seconds
        elif member.layout in names:
            found[masks >> names.index(member.layout) & 1 == 1] = seconds
    return found


def _best(item: Usable, layouts: frozenset[str], released: bool, numerics: str) -> Member | None:
    """The member that serves on these layouts; None is the default."""
    for member in _ranked(item, released, numerics):
        if not member.layout or member.layout in layouts:
            return _worth(item, member, released, numerics)
    return None


def _ranked(item: Usable, released: bool, numerics: str) -> list[Member]:
    """What may serve, the best first: what was measured here before what is borrowed from other sizes."""
    bound = released or bool(numerics)  # the default cannot serve
    own = [m for m in item.members if item.pinned or not item.barred or (bound and m.tactic not in item.barred)]
    own = [m for m in own if m.layout or not released]
    lent = [
        m
        for m in item.borrowed
        if bound and not item.pinned and m.tactic not in item.barred and (m.layout or not released)
    ]
    if numerics:
        own, lent = ([m for m in some if item.numerics.get(m.tactic) == numerics] for some in (own, lent))
    # a tie may have the smaller ratio; the verdict settled that
    return [
        *sorted(own, key=lambda m: (reckoned(m, item.verdict), m.tactic != item.verdict.winner)),
        *sorted(lent, key=lambda m: reckoned(m, item.verdict)),
    ]


def _worth(item: Usable, member: Member, released: bool, numerics: str) -> Member | None:
    """The member, or None where the default can serve and is as fast."""
    if (
        released
        or numerics
        or member.tactic == item.verdict.winner
        or reckoned(member, item.verdict) < item.verdict.speedup
    ):
        return None if member.tactic == DEFAULT.name else member
    return None


def _undominated(options: Sequence[Option]) -> list[Option]:
    """Those that no other beats in bytes without losing in seconds, by bytes."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (o.bytes, o.seconds, not o.released)):
        if not kept or option.seconds < kept[-1].seconds:
            kept.append(option)
    return kept
