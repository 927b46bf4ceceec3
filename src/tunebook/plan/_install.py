"""Putting a plan into service: its tactics, its prepared weights, and the original weights that it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tunebook.devices import give_back
from tunebook.dispatch import FREE, Binding, Scope
from tunebook.plan._layouts import Choices
from tunebook.plan._unseen import everywhere
from tunebook.records import DEFAULT, Problem, Tactic

Families = Mapping[Binding, tuple[str, ...]]


def install(scope: Scope, choices: Choices, families: Families) -> None:
    """Serve `choices` in `scope`, and give up the prepared weights that it does not need.

    Bindings that are not in `families` keep what they have. Released weights that the plan wants as they were are made
    again; none are released by this. Where results must not depend on the batch, sizes that were never measured are served
    as the nearest one is.
    """
    for binding, names in families.items():
        if binding.released and _source(choices, binding, names) is None:
            binding.restore()
        binding.prepared.keep_only({*_needed(choices, names), *_held(binding)})
    give_back()
    # where the default cannot serve, a problem without a tactic gets the nearest size's
    tactics = {
        key: tactic
        for key, tactic in choices.tactics.items()
        if tactic != DEFAULT or Problem.parse(key).family not in choices.sources
    }
    scope.install({**everywhere(choices, families), **tactics}, replace=scope is not FREE)


def prepare(
    choices: Choices,
    families: Families,
    progress: Callable[[int, int, str], None] | None = None,
    *,
    releasing: bool = False,
    failed: Callable[[Binding, Exception], None] | None = None,
) -> int:
    """Build every layout of the plan now, before it serves. Returns the bytes that they take.

    releasing: layer by layer, original weights that the plan does not need are given back as well; where a runner can, the
    first layout is made in their memory. Without it both live, so that default and tuned steps can be compared.
    failed: told of a layer whose weights could not be prepared, instead of an exception.
    """
    by_family: dict[str, dict[str, Tactic]] = {}
    for key, tactic in choices.tactics.items():
        by_family.setdefault(Problem.parse(key).family, {})[tactic.name] = tactic
    for family, tactic in choices.sources.items():
        by_family.setdefault(family, {})[tactic.name] = tactic
    for done, (binding, names) in enumerate(families.items()):
        try:
            if releasing:
                _release(choices, binding, names)
            for family in names:
                for tactic in by_family.get(family, {}).values():
                    binding.bound(tactic)
            if releasing:
                binding.prepared.keep_only({*_needed(choices, names), *_held(binding)})
        except Exception as error:  # a runner's own code
            if failed is None:
                raise
            failed(binding, error)
        if progress:
            progress(done + 1, len(families), "preparing weights")
    return sum(binding.prepared.bytes for binding in families)


def release(choices: Choices, families: Families) -> int:
    """Give back the original weights that the plan does not need; its layouts are there. Returns the bytes of them."""
    for binding, names in families.items():
        _release(choices, binding, names)
    give_back()
    return sum(binding.releasable for binding in families if binding.released)


def _release(choices: Choices, binding: Binding, names: tuple[str, ...]) -> None:
    source = _source(choices, binding, names)
    if source is not None and not (binding.released and binding.source == source):
        binding.release(source)


def _source(choices: Choices, binding: Binding, names: tuple[str, ...]) -> Tactic | None:
    """The tactic whose layout stands for this layer's original weights; None where they are kept."""
    return choices.sources.get(names[0]) if len(names) == 1 and binding.releasable else None


def _needed(choices: Choices, names: tuple[str, ...]) -> set[str]:
    return {layout for family in names for layout in choices.layouts.get(family, ())}


def _held(binding: Binding) -> set[str]:
    """The layout that released weights would be made from."""
    runner = binding.spec.runner_of(binding.source) if binding.source is not None else None
    return {runner.layout_of(binding.source)} if runner is not None and binding.source is not None else set()
