"""Making and installing a plan: from what sessions settled to the tactics and layouts that one scope is served with."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace

from tunebook.dispatch import FREE, Binding, Scope
from tunebook.plan._layouts import Choices, Usable, choose_layouts
from tunebook.records import DEFAULT, Member, Problem, Tactic, Verdict
from tunebook.tuner import Collection, Outcome

#: Prepared weights may take this share of the model's own, beside them.
EXTRA_WEIGHTS = 0.1
#: And this share of the memory that is free.
FREE_SHARE = 0.5


def extra_bytes(model_bytes: int, free: int) -> int:
    """How many bytes of prepared weights a plan may hold."""
    return int(min(EXTRA_WEIGHTS * model_bytes, FREE_SHARE * free))


@dataclass
class Knowledge:
    """What is known about the problems of one scope: several tunings add up."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    members: dict[str, tuple[Member, ...]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    families: dict[Binding, tuple[str, ...]] = field(default_factory=dict)

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


def make(known: Knowledge, limit: int) -> Choices:
    """The plan that serves what is known, with at most `limit` bytes of prepared weights."""
    usable = [Usable(key, known.weights[key], known.verdicts[key], members) for key, members in known.members.items()]
    layers: dict[str, int] = {}
    for names in known.families.values():
        for name in names:
            layers[name] = layers.get(name, 0) + 1
    return choose_layouts(usable, layers, limit)


def without(choices: Choices, keys: Container[str], known: Knowledge) -> Choices:
    """The same plan with the default for these problems, and without the layouts that nothing needs then.

    Its bytes and seconds are those of the whole plan.
    """
    tactics = {key: DEFAULT if key in keys else tactic for key, tactic in choices.tactics.items()}
    needed: dict[str, set[str]] = {}
    for key, tactic in tactics.items():
        for member in known.members.get(key, ()):
            if member.layout and member.tactic == tactic.name:
                needed.setdefault(Problem.parse(key).family, set()).add(member.layout)
    layouts = {
        family: tuple(name for name in names if name in needed.get(family, ()))
        for family, names in choices.layouts.items()
    }
    return replace(choices, tactics=tactics, layouts={family: names for family, names in layouts.items() if names})


def expected(choices: Choices, known: Knowledge) -> dict[str, float]:
    """What each problem's tactic takes of the default's time by its verdict: 0.5 where it is twice as fast."""
    found: dict[str, float] = {}
    for key, tactic in choices.tactics.items():
        member = next((m for m in known.members.get(key, ()) if m.tactic == tactic.name), None)
        found[key] = member.ratio / known.verdicts[key].speedup if member else 1.0
    return found


def install(scope: Scope, choices: Choices, families: Mapping[Binding, tuple[str, ...]]) -> None:
    """Serve `choices` in `scope`, and release the prepared weights that it does not need.

    Bindings that are not in `families` keep what they have.
    """
    for binding in families:
        needed = {layout for family in families.get(binding, ()) for layout in choices.layouts.get(family, ())}
        binding.prepared.keep_only(needed)
    scope.install(choices.tactics, replace=scope is not FREE)


def prepare(
    choices: Choices,
    families: Mapping[Binding, tuple[str, ...]],
    progress: Callable[[int, int, str], None] | None = None,
) -> int:
    """Build every layout of the plan now, before it serves. Returns the bytes that they take."""
    by_family: dict[str, dict[str, Tactic]] = {}
    for key, tactic in choices.tactics.items():
        by_family.setdefault(Problem.parse(key).family, {})[tactic.name] = tactic
    for done, (binding, names) in enumerate(families.items()):
        for family in names:
            for tactic in by_family.get(family, {}).values():
                binding.bound(tactic)
        if progress:
            progress(done + 1, len(families), "preparing weights")
    return sum(binding.prepared.bytes for binding in families)
