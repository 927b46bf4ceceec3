"""The ops that are declared in this process, and whether they offer a tactic today."""

from __future__ import annotations

from collections.abc import Mapping

import tunebook.kernels  # noqa: F401 - declares the ops that ship
from tunebook.dispatch import OPS
from tunebook.ops import OpSpec
from tunebook.records import Problem, Tactic
from tunebook.tuner import available_runners
from tunebook.tuner._admissible import foreign, not_offered


def declared_ops() -> Mapping[str, OpSpec]:
    """The ops that ship and those of the files that were loaded, by name."""
    return dict(OPS)


def why_not_offered(spec: OpSpec, problem: Problem, tactic: Tactic) -> str | None:
    """Why the op does not offer a tactic for a problem here and today, or None."""
    return foreign(problem, spec) or not_offered(tactic, problem, spec, available_runners(spec))
