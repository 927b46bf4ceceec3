"""Parts of a binding's calls: constants filled in, arguments made contiguous, calls counted, changed constants noticed."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

from tunebook.dispatch._caller import Call
from tunebook.records import Tactic


def counting(counts: Counter[str], what: str, call: Call) -> Call:
    def counted(*args: Any) -> Any:
        counts[what] += 1
        return call(*args)

    return counted


def with_constants(function: Call, dynamic: int, constants: tuple[Any, ...], tactic: Tactic | None = None) -> Call:
    """`function` of `dynamic` arguments, the others and its parameters filled in; the commonest forms avoid unpacking."""
    params = tactic.kwargs if tactic else {}
    run = functools.partial(function, **params) if params else function
    if not constants:
        return run
    if dynamic == 1 and len(constants) == 1:
        (only,) = constants
        return lambda x: run(x, only)
    if dynamic == 1 and len(constants) == 2:
        one, two = constants
        return lambda x: run(x, one, two)
    return lambda *args: run(*args, *constants)


def on_contiguous(call: Call) -> Call:
    """Tactics are checked and raced on contiguous arguments; others are copied for them."""

    def contiguous(*args: Any) -> Any:
        return call(*(value.contiguous() if hasattr(value, "is_contiguous") else value for value in args))

    return contiguous


def versions(constants: tuple[Any, ...]) -> tuple[tuple[int, int], ...]:
    """Of each tensor the version counter, which moves when it is written in place (0 for inference tensors), and its place."""
    return tuple(
        (0 if value.is_inference() else value._version, value.data_ptr())
        for value in constants
        if hasattr(value, "untyped_storage")
    )


def requires_grad_of(args: tuple[Any, ...]) -> bool:
    return any(getattr(value, "requires_grad", False) for value in args)
