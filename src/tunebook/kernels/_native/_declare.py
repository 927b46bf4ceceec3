"""The runners on the native kernels: `native` on packed weights, `native_rows` on the model's own."""

from __future__ import annotations

import functools
import itertools
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tunebook.kernels._experts import _native as native_experts
from tunebook.kernels._linear import _native as native_linear
from tunebook.kernels._native._available import shared_objects, unavailable
from tunebook.records import Problem, Scalar

if TYPE_CHECKING:
    from tunebook.dispatch import Op

Point = dict[str, Scalar]
#: The row counts for which tactics are declared; a problem is offered those of its own.
_ROWS = tuple(1 << n for n in range(15))


def declare(linear: Op[..., Any], experts: Op[..., Any]) -> None:
    """Declare `native` and `native_rows` for both ops; where the kernels cannot be used, `available` says why."""
    for op, kernels in ((linear, native_linear), (experts, native_experts)):
        points = _points(op.name) if unavailable() is None else []
        _declare(op, kernels, [p for p in points if "block" in p], [p for p in points if "block" not in p])


def _declare(op: Op[..., Any], kernels: ModuleType, packed: list[Point], rows: list[Point]) -> None:
    op.runner(
        "native",
        packed or None,
        available=unavailable,
        sources=shared_objects(),
        prepare=kernels.pack,
        convert=kernels.convert,
        restore=kernels.restore,
        layout=lambda *, block=0, **_: f"packed-{block}",
        bits=lambda *, isa="", block=0, **_: f"{isa}-{block}",
        bind=kernels.bind,
        workspace=kernels.workspace,
        supports=_refusal,
        within=functools.partial(_within, op.name),
    )(kernels.serve)
    op.runner(
        "native_rows",
        rows or None,
        available=unavailable,
        sources=shared_objects(),
        bits=lambda *, isa="", dot=False, **_: f"{isa}-{'dot' if dot else 'rows'}",
        bind=kernels.bind_rows,
        workspace=kernels.workspace,
        supports=_refusal,
        within=functools.partial(_within, op.name),
    )(kernels.serve_rows)


def _points(op: str) -> list[Point]:
    """Every tactic that some problem of the op is offered."""
    from tunebook.kernels._native._rules import DTYPES, offered

    found: dict[str, Point] = {}
    either = (True, False)
    for weight, panel, rows, small, many in itertools.product(DTYPES, DTYPES, _ROWS, either, either):
        for point in offered(op, rows, panel, weight, small=small, many=many):
            found.setdefault(str(point), dict(point))
    return list(found.values())


def _refusal(problem: Problem, **_: Scalar) -> str | None:
    """Why the kernels cannot take a problem, or None."""
    unknown = [dtype for dtype in _dtypes(problem) if dtype not in ("bf16", "fp32")]
    return f"the native kernels take bf16 and fp32, not {', '.join(unknown)}" if unknown else None


def _within(op: str, problem: Problem, **params: Scalar) -> bool:
    """Whether a tactic is among those that are worth trying on a problem; none is where the kernels know no such dtypes."""
    import torch

    from tunebook.kernels._native._rules import DTYPES, ONE_THREAD_BYTES, offered

    panel, weight = _dtypes(problem)
    if panel not in DTYPES or weight not in DTYPES:
        return False
    sizes = dict(problem.attrs)
    rows, small = problem.dims[0].size, False
    if op == "experts":
        rows = -(-rows * int(sizes["K"]) // max(1, int(sizes["E"])))
    else:
        small = int(sizes["N"]) * int(sizes["K"]) * DTYPES[weight].itemsize <= ONE_THREAD_BYTES
    return params in offered(op, max(1, rows), panel, weight, small=small, many=torch.get_num_threads() > 1)


def _dtypes(problem: Problem) -> tuple[str, str]:
    """Of the activations and of the weights."""
    named = dict(part.split(":") for part in problem.dtypes[1:])
    return problem.dtypes[0], named.get("weight", named.get("weights", problem.dtypes[0]))
