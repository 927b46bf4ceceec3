"""Contracts as parameters of a test: one case for each op and problem, and for each runner and problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunebook.ops import OpSpec
from tunebook.records import Problem
from tunebook.testing._inputs import Given
from tunebook.testing._op import check_op
from tunebook.testing._runner import check_runner


@dataclass(frozen=True)
class Case:
    """An op on a problem; with `runner` that runner of it. Its text is fit for a test's name."""

    op: OpSpec
    given: Given
    runner: str | None = None

    def check(self) -> None:
        """Raises as `check_op` and `check_runner` do."""
        if self.runner is None:
            check_op(self.op, [self.given])
        else:
            check_runner(self.op, self.runner, [self.given])

    def __str__(self) -> str:
        what = str(self.given) if isinstance(self.given, str | Problem) else f"{self.op.name}(…)"
        return what if self.runner is None else f"{self.runner}-{what}"


def cases_of(op: OpSpec, problems: Sequence[Given], *, runners: Sequence[str] | None = None) -> list[Case]:
    """The op, and each of its runners (or of these), on each of the problems: for ``pytest.mark.parametrize(…, ids=str)``.

    problems: as for `check_op`; every runner has to take every one of them, else name those that do.
    """
    names = tuple(op.runners) if runners is None else tuple(runners)
    return [Case(op, given, name) for given in problems for name in (None, *names)]
