"""The runners of `qkv` and `attend` on the native kernels."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from tunebook.kernels._attention import _native as kernels
from tunebook.kernels._attention._ops import attend, qkv
from tunebook.kernels._native._available import shared_objects, unavailable
from tunebook.records import Problem, Scalar

Point = dict[str, Scalar]
#: What the rows of a problem may be; each has tactics of its own.
_ROWS = tuple(1 << n for n in range(15))


def declare() -> None:
    """Declare `native` for both ops; where the kernels cannot be used, `available` says why."""
    here = unavailable() is None
    qkv.runner(
        "native",
        _qkv_points() if here else None,
        available=unavailable,
        sources=shared_objects(),
        prepare=kernels.pack,
        restore=kernels.restore,
        layout=lambda *, block=0, **_: f"packed-{block}",
        bits=lambda *, isa="", block=0, **_: f"{isa}-{block}",
        bind=kernels.bind,
        workspace=kernels.workspace,
        supports=_qkv_refusal,
        within=_qkv_within,
    )(kernels.serve)
    attend.runner(
        "native",
        _attend_points() if here else None,
        available=unavailable,
        sources=shared_objects(),
        bits=lambda *, isa="", **_: isa,
        bind=kernels.bind_attend,
        workspace=kernels.attend_workspace,
        supports=_attend_refusal,
        within=_attend_within,
    )(kernels.serve_attend)


def _qkv_points() -> list[Point]:
    """The packed tactics of a linear layer, for every row count and dtype."""
    from tunebook.kernels._native._rules import DTYPES, offered

    found: dict[str, Point] = {}
    for weight, panel, rows, many in itertools.product(DTYPES, DTYPES, _ROWS, (True, False)):
        for point in offered("linear", rows, panel, weight, small=False, many=many):
            if "block" in point:
                found.setdefault(str(point), dict(point))
    return list(found.values())


def _attend_points() -> list[Point]:
    """The widest vectors, on all threads, and on one: few keys are done before a second is awake."""
    from tunebook.kernels._native._tactic import instruction_sets

    widest = next(isa for isa in instruction_sets() if isa != "amx")
    return [{"isa": widest, "threads": 0}, {"isa": widest, "threads": 1}]


def _attend_within(problem: Problem, *, threads: Scalar = 0, **_: Scalar) -> bool:
    """Where there is one thread, all threads are that one. It is asked when tuning: the count may be set after the import."""
    return threads == 0 or torch.get_num_threads() > 1


def _qkv_refusal(problem: Problem, **_: Scalar) -> str | None:
    """Why the kernels cannot take a problem, or None."""
    unknown = {problem.dtypes[0], *(part.partition(":")[2] for part in problem.dtypes[1:])} - {"bf16", "fp32"}
    return f"the native kernels take bf16 and fp32, not {', '.join(sorted(unknown))}" if unknown else None


def _qkv_within(problem: Problem, **params: Scalar) -> bool:
    """Whether a tactic is among those that are worth trying on a problem: those of a linear layer."""
    from tunebook.kernels._native._rules import DTYPES, offered

    panel = problem.dtypes[0]
    weight = dict(part.split(":") for part in problem.dtypes[1:]).get("weight", panel)
    if panel not in DTYPES or weight not in DTYPES:
        return False
    rows, many = max(1, problem.dims[0].size), torch.get_num_threads() > 1
    return params in offered("linear", rows, panel, weight, small=False, many=many)


def _attend_refusal(problem: Problem, **_: Any) -> str | None:
    if problem.dtypes[0] not in ("bf16", "fp32") or len(problem.dtypes) > 1:
        return f"the native kernels take q, k and v of one dtype, bf16 or fp32, not {', '.join(problem.dtypes)}"
    return None
