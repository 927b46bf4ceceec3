"""Making a plan: from what sessions settled to the tactics, layouts and released weights that one scope is served with."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from tunebook.dispatch import Binding, Scope
from tunebook.errors import UsageError
from tunebook.ops import OpSpec
from tunebook.plan._families import Usable, Weights, reckoned
from tunebook.plan._layouts import Choices, by_family, choose_layouts
from tunebook.plan._lend import Lender
from tunebook.plan._trust import trusted
from tunebook.plan._unseen import REMEDY, everywhere
from tunebook.plan._weigh import Shares, weigh
from tunebook.records import Holding, Member, Mix, Problem, Profile, Tactic, Verdict
from tunebook.tuner import Collection, Outcome


@dataclass(frozen=True)
class Room:
    """The `bytes` that a plan may hold beside the unattached model's weights, and whether original ones may be released."""

    bytes: int
    release: bool = True


@dataclass
class Knowledge:
    """What is known about the problems of one scope: several tunings add up. `rest` is the time outside of them all."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    members: dict[str, tuple[Member, ...]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    families: dict[Binding, tuple[str, ...]] = field(default_factory=dict)
    rest: float = 0.0

    def learn(self, outcome: Outcome, collection: Collection, scope: Scope) -> None:
        """Add what one tuning settled about the bindings of `scope`; newer verdicts replace older ones."""
        for family in collection.families.values():
            mine = [binding for binding in family.layers if binding.scope is scope]
            for binding in mine:
                self.families[binding] = tuple(dict.fromkeys((*self.families.get(binding, ()), family.name)))
            for key, members in outcome.members.items() if mine else ():
                problem = Problem.parse(key)
                if members and (problem.family, problem.policy) == (family.name, scope.measurement):
                    self.verdicts[key], self.members[key] = outcome.verdicts[key], members
                    self.weights[key] = outcome.weights.get(key, 0.0)

    def weigh(self, profile: Sequence[Profile], mix: Mix | None) -> None:
        """Weigh every problem by its share of the mix, instead of the seconds that a dummy run met it for."""
        met = {key: phase.taken[key] / count for phase in profile for key, count in phase.calls.items() if count}
        raced = {key: v.seconds * v.speedup for key, v in self.verdicts.items() if v.seconds}
        shares: Shares = weigh(self.members, profile, mix, {**met, **raced})
        self.weights, self.rest = shares.problems, shares.rest

    def layers(self, family: str) -> list[Binding]:
        """The bindings that share a family."""
        return [binding for binding, names in self.families.items() if family in names]

    def forget(self, ops: Container[str]) -> None:
        """Leave the problems of these ops out: their default serves."""
        for key in [key for key in self.members if Problem.parse(key).op in ops]:
            del self.members[key], self.verdicts[key], self.weights[key]


def weights_of(known: Knowledge, *, release: bool = True) -> dict[str, Weights]:
    """Of each family its layers, what may be released of them, and the layouts from which it could be made again."""
    found: dict[str, Weights] = {}
    for family in dict.fromkeys(Problem.parse(key).family for key in known.members):
        layers = known.layers(family)
        sole = [binding for binding in layers if len(known.families[binding]) == 1]  # others serve two families' calls
        found[family] = Weights(
            layers=max(1, len(layers)),
            releasable=sum(binding.releasable for binding in sole) if release else 0,
            restores=frozenset(_restoring(known, family, layers[0].spec)) if layers else frozenset(),
        )
    return found


def _restoring(known: Knowledge, family: str, spec: OpSpec) -> Iterable[str]:
    for key, members in known.members.items():
        for member in members if Problem.parse(key).family == family else ():
            runner = spec.runner_of(Tactic.parse(member.tactic)) if member.layout else None
            if runner is not None and runner.restore is not None:
                yield member.layout


def make(
    known: Knowledge,
    room: Room,
    *,
    invariant: bool = False,
    barred: Mapping[str, frozenset[str]] | None = None,
    fixed: Choices | None = None,
    free: AbstractSet[str] = frozenset(),
) -> Choices:
    """The plan that serves what is known, under a memory limit.

    invariant: one result whatever the batch. Raises UsageError that names the op and the family which cannot have that.
    barred: tactics that must not serve a problem.
    fixed, free: as in `choose_layouts`; where that does not fit, everything is chosen anew.
    """
    usable = _usable(known, barred or {}, invariant)
    weights = weights_of(known, release=room.release)
    if invariant:
        _check_invariant(usable, weights)
    made = None
    if fixed is not None:
        made = choose_layouts(usable, weights, room.bytes, invariant=invariant, fixed=fixed, free=tuple(free))
    made = made or choose_layouts(usable, weights, room.bytes, invariant=invariant)
    if made is None and not invariant:
        raise UsageError(
            f"the pinned tactics need prepared weights of more than the {room.bytes} bytes that the memory limit leaves beside "
            "the model's; give a larger limit, or take a pin away"
        )
    if made is None:
        raise UsageError(
            f"one result whatever the batch needs prepared weights of more than the {room.bytes} bytes that the memory limit "
            "leaves beside the model's; give a larger limit"
        )
    everywhere(made, known.families)  # or a size has none
    return made


def _usable(known: Knowledge, barred: Mapping[str, frozenset[str]], invariant: bool) -> list[Usable]:
    specs = {binding.spec.name: binding.spec for binding in known.families}
    trust = trusted(known.members, known.verdicts)
    lender = Lender(trust, known.verdicts, specs)
    found = []
    for key, members in trust.items():
        lent = lender.to(key)
        found.append(
            Usable(
                key,
                known.weights[key],
                known.verdicts[key],
                members,
                borrowed=lent,
                barred=barred.get(key, frozenset()),
                numerics=lender.numerics(key, (*members, *lent)) if invariant else {},
            )
        )
    return found


def _check_invariant(usable: Sequence[Usable], weights: Mapping[str, Weights]) -> None:
    for family, choice in by_family(usable, weights, invariant=True).items():
        if not choice.options():
            op = family.partition("|")[0]
            left = [item for item in choice.items if not item.verdict.rounds and not item.pinned]
            untuned = f"{len(left)} of its {len(choice.items)} sizes were not tuned: give a larger --budget; else "
            raise UsageError(
                f"op {op}, {family}: no tactic for all its sizes gives one result whatever the batch; "
                f"{untuned if left else ''}{REMEDY}"
            )


def without(choices: Choices, keys: Iterable[str], known: Knowledge, room: Room) -> Choices:
    """The same plan without what serves these problems now: the default does instead.

    Where the originals are released they are kept again if the limit allows it; else the best other tactic on the family's
    layouts serves, or whatever takes least time under the limit. Other families keep what they have, if that fits.
    """
    now = {key: choices.barred.get(key, frozenset()) | {choices.tactics[key].name} for key in keys}
    if not now:
        return choices
    free = {Problem.parse(key).family for key in now}
    barred = {**choices.barred, **now}
    return make(known, room, invariant=bool(choices.numerics), barred=barred, fixed=choices, free=free)


def expected(choices: Choices, known: Knowledge) -> dict[str, float]:
    """What each problem's tactic takes of the default's time by its verdict: 0.5 where it is twice as fast."""
    found: dict[str, float] = {}
    trust = trusted(known.members, known.verdicts)
    for key, tactic in choices.tactics.items():
        member = next((m for m in trust.get(key, ()) if m.tactic == tactic.name), None)
        found[key] = 1.0
        if member is not None:
            verdict = known.verdicts[key]
            found[key] = reckoned(member, verdict) / verdict.speedup
    return found


def holdings(choices: Choices, known: Knowledge) -> tuple[Holding, ...]:
    """What each family with prepared weights holds, what it takes, and what each layout buys in the mix.

    Where the result must not depend on the batch, of every family.
    """
    barred = choices.barred
    families = by_family(
        _usable(known, barred, bool(choices.numerics)), weights_of(known), invariant=bool(choices.numerics)
    )
    total = known.rest + choices.seconds
    found = []
    for family in sorted({*choices.layouts, *choices.numerics}):
        choice, source, layouts = families[family], choices.sources.get(family), choices.layouts.get(family, ())
        here = choice.like(layouts, source is not None, choices.numerics.get(family, ""))
        buys = {}
        for name in layouts if here and total > 0 else ():
            buys[name] = (total - here[0].seconds + choice.without(name, here[0])) / total
        found.append(
            Holding(
                family=family,
                layers=choice.weights.layers,
                layouts={name: choice.bytes[name] for name in layouts},
                buys=buys,
                released=choice.weights.releasable if source else 0,
                source=source.name if source else "",
                numerics=choices.numerics.get(family, ""),
            )
        )
    return tuple(found)
