"""Making and installing a plan: from what a session settled to the tactics and layouts that one scope is served with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tunebook.dispatch import FREE, Binding, Scope
from tunebook.plan._layouts import Choices, Usable, choose_layouts
from tunebook.records import Problem, Tactic
from tunebook.tuner import Collection, Outcome

#: Prepared weights may take this share of the model's own, beside them.
EXTRA_WEIGHTS = 1.0
#: And this share of the memory that is free.
FREE_SHARE = 0.5


def extra_bytes(model_bytes: int, free: int) -> int:
    """How many bytes of prepared weights a plan may hold."""
    return int(min(EXTRA_WEIGHTS * model_bytes, FREE_SHARE * free))


def make(outcome: Outcome, collection: Collection, scope: Scope, limit: int) -> Choices:
    """The plan of one scope from an outcome."""
    usable: list[Usable] = []
    layers: dict[str, int] = {}
    for family in collection.families.values():
        mine = [binding for binding in family.layers if binding.scope is scope]
        if not mine:
            continue
        layers[family.name] = len(mine)
        for key, members in outcome.members.items():
            if members and Problem.parse(key).family == family.name:
                usable.append(Usable(key, outcome.weights.get(key, 0.0), outcome.verdicts[key], members))
    return choose_layouts(usable, layers, limit)


def install(scope: Scope, choices: Choices, families: Mapping[Binding, str]) -> None:
    """Serve `choices` in `scope`, and release the prepared weights that it does not need.

    A binding whose problem family is not in `families` keeps no prepared weights.
    """
    for binding in scope.bindings:
        binding.prepared.keep_only(choices.layouts.get(families.get(binding, ""), ()))
    scope.install(choices.tactics, replace=scope is not FREE)


def prepare(
    scope: Scope,
    choices: Choices,
    families: Mapping[Binding, str],
    progress: Callable[[int, int, str], None] | None = None,
) -> int:
    """Build every layout of the plan now, before it serves. Returns the bytes that they take."""
    by_family: dict[str, dict[str, Tactic]] = {}
    for key, tactic in choices.tactics.items():
        by_family.setdefault(Problem.parse(key).family, {})[tactic.name] = tactic
    bindings = scope.bindings
    for done, binding in enumerate(bindings):
        for tactic in by_family.get(families.get(binding, ""), {}).values():
            binding.bound(tactic)
        if progress:
            progress(done + 1, len(bindings), "preparing weights")
    return sum(binding.prepared.bytes for binding in bindings)
