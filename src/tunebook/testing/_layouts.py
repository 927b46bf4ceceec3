"""What a runner with weights of its own promises: one layout is one form, it can be given back, and calls leave it alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunebook.devices import Device
from tunebook.dispatch import Binding, Scope, tensor_bytes, tensors_of
from tunebook.measure import Finding, Reference, check
from tunebook.ops import Runner
from tunebook.records import Tactic
from tunebook.testing._failure import broken, no_exception
from tunebook.testing._inputs import copies, same_bits


def check_layouts(
    thing: str, runner: Runner, layer: Binding, tactics: Sequence[Tactic], reference: Reference, device: Device
) -> None:
    """Check `prepare`, `layout`, `restore` and `convert`; nothing for a runner without prepared weights."""
    prepare = runner.prepare
    if prepare is None:
        return
    first: dict[str, tuple[Tactic, int]] = {}
    for tactic in tactics:
        where = tactic.name
        with no_exception(thing, f"{where}: its layout raises", "let it return a name for every tactic"):
            layout = runner.layout_of(tactic)
        prepared = prepare(*layer.constants, **tactic.kwargs)
        taken = tensor_bytes(prepared)
        if not taken:
            broken(
                thing,
                f"{where}: its prepared weights take no bytes that can be seen",
                "return tensors, containers of tensors, or objects that say in nbytes what they take",
            )
        other, expected = first.setdefault(layout, (tactic, taken))
        if taken != expected:
            broken(
                thing,
                f"{where}: its layout {layout!r} takes {taken} bytes, and {expected} for {other.name}",
                "one layout is one form, shared by all its tactics; let layout= name them apart",
            )
        if other != tactic:
            _check_shared(thing, tactic, other, layer, reference, device, layout)
    for tactic, _ in first.values():
        _check_restore(thing, runner, tactic, layer)
        _check_convert(thing, runner, tactic, layer, reference, device)


def _check_shared(
    thing: str, tactic: Tactic, other: Tactic, layer: Binding, reference: Reference, device: Device, layout: str
) -> None:
    """A tactic is right on what another of its layout has prepared."""
    shared = Binding(layer.spec, layer.constants, scope=Scope("contract", device=layer.scope.device))
    shared.bound(other)
    found = check(shared.bound(tactic), reference, device)
    if isinstance(found, Finding):
        broken(
            thing,
            f"{tactic.name}: on the layout {layout!r} that {other.name} has made: {found.detail}",
            "one layout is one form, shared by all its tactics; let layout= name them apart",
        )


def _check_restore(thing: str, runner: Runner, tactic: Tactic, layer: Binding) -> None:
    if runner.restore is None or runner.prepare is None:
        return
    remedy = "let restore(prepared, *, last) give the tensors among the constants again, bit for bit and in order"
    expected = list(tensors_of(layer.constants))
    for last in (False, True):
        prepared = runner.prepare(*layer.constants, **tactic.kwargs)
        where = f"{tactic.name}: restore(last={last})"
        with no_exception(thing, f"{where} raises", remedy):
            made = list(runner.restore(prepared, last=last))
        if not same_bits(made, expected):
            broken(thing, f"{where} gives other weights than it was prepared from", remedy)
        if not last and not same_bits(list(runner.restore(prepared, last=True)), expected):
            broken(thing, f"{where} spoils what was prepared", "only with last=True may it be used up")


def _check_convert(
    thing: str, runner: Runner, tactic: Tactic, layer: Binding, reference: Reference, device: Device
) -> None:
    if runner.convert is None:
        return
    constants = copies(layer.constants)
    remedy = "let convert make what prepare makes, in the memory of the constants, or touch nothing and return None"
    with no_exception(thing, f"{tactic.name}: convert raises", remedy):
        converted: Any = runner.convert(*constants, **tactic.kwargs)
    if converted is None:
        if not same_bits(constants, layer.constants):
            broken(thing, f"{tactic.name}: convert returns None, and has changed the weights", remedy)
        return
    other = Binding(layer.spec, layer.constants, scope=Scope("contract", device=layer.scope.device))
    other.prepared.get(runner.layout_of(tactic), lambda: converted)
    found = check(other.bound(tactic), reference, device)
    if isinstance(found, Finding):
        broken(thing, f"{tactic.name}: on converted weights: {found.detail}", remedy)
