"""What `bits` promises: tactics with one such name give equal bits for a row, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunebook.dispatch import Binding
from tunebook.ops import Runner
from tunebook.records import Problem, Tactic
from tunebook.testing._failure import broken, no_exception
from tunebook.testing._inputs import is_tensor, same_bits


def check_bits(
    thing: str,
    runner: Runner,
    layer: Binding,
    problem: Problem,
    tactics: Sequence[Tactic],
    calls: Sequence[tuple[Any, ...]],
) -> None:
    """Check it on calls, each being the dynamic arguments; nothing for a runner without that promise."""
    if runner.bits is None:
        return
    remedy = "name other bits, or leave bits= out"
    known: dict[str, tuple[Tactic, list[Any]]] = {}
    for tactic in tactics:
        where = f"{problem}, {tactic.name}"
        with no_exception(thing, f"{where}: its bits raises", "let it return a name for every tactic"):
            name = runner.numerics(tactic)
        assert name is not None
        call = layer.bound(tactic)
        results = [call(*args) for args in calls]
        for args, result in zip(calls, results, strict=True):
            if not same_bits(call(*args), result):
                broken(thing, f"{where}: two equal calls differ in bits, though it says bits={name!r}", remedy)
            if not _alone(layer, call, args, result):
                broken(
                    thing,
                    f"{where}: a row alone differs in bits from the row in a batch, though it says {name!r}",
                    remedy,
                )
        other, expected = known.setdefault(name, (tactic, results))
        if not same_bits(results, expected):
            broken(thing, f"{where}: it differs in bits from {other.name}, and both say {name!r}", remedy)


def _alone(layer: Binding, call: Any, args: tuple[Any, ...], result: Any) -> bool:
    """Whether the first row of a call gives the bits that it gives in the batch; true where a row cannot be taken out.

    A row is what the op's buckets name, if that is one dimension of the output too.
    """
    op = layer.spec
    rows = {value.shape[0] for name, value in zip(op.dynamic, args, strict=True) if 0 in op.shape.buckets.get(name, {})}
    if len(op.shape.by_name) != 1 or len(rows) != 1 or not is_tensor(result) or {result.shape[0]} != rows:
        return True
    first = tuple(
        value[:1].contiguous() if is_tensor(value) and value.ndim and value.shape[0] in rows else value
        for value in args
    )
    try:
        described = op.shape.describe((*first, *layer.constants))
        if set(described.sizes.values()) != {1}:
            return True
        alone = call(*first)
    except Exception:  # noqa: BLE001 - its rows are no calls of their own
        return True
    return same_bits(alone, result[:1])
