"""Given with --with: makes one tactic slower on one problem, as an edit of its code would. What, says the variable SLOWED."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from typing import Any

import tunebook.kernels  # noqa: F401 - declares the ops
from tunebook.dispatch import OPS, Binding
from tunebook.records import Problem, Tactic

TARGET = json.loads(os.environ["SLOWED"])
PROBLEM, TACTIC = Problem.parse(TARGET["problem"]), Tactic.parse(TARGET["tactic"])
ROWS = PROBLEM.dims[0].size
clock = time.process_time if TARGET["cpu_clock"] else time.perf_counter
original = Binding.bound


def bound(self: Binding, tactic: Tactic) -> Callable[..., Any]:
    call = original(self, tactic)
    return slower(call) if tactic == TACTIC and self.spec.name == PROBLEM.op else call


def slower(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same, with a busy wait of a share of its own time after it, where its first argument is of the problem's bucket."""

    def run(x: Any, *others: Any) -> Any:
        if 1 << (x.numel() // x.shape[-1] - 1).bit_length() != ROWS:
            return call(x, *others)
        started = clock()
        result = call(x, *others)
        end = clock()
        while clock() < end + TARGET["by"] * (end - started):
            pass
        return result

    return run


Binding.bound = bound  # type: ignore[method-assign]  # what else may change a tactic and leave its name
runners = OPS[PROBLEM.op].runners
known = runners[TACTIC.runner]
runners[TACTIC.runner] = dataclasses.replace(known, declared_version=f"{known.version}+slower")
