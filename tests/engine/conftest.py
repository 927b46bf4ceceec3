"""What tests of attached models share: the problems that a model's calls meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from tunebook.dispatch import Binding, collecting
from tunebook.records import Problem

Problems = dict[str, tuple[Binding, Problem]]


class Noting:
    """Notes the problems of all calls, and runs their defaults."""

    def __init__(self) -> None:
        self.problems: Problems = {}

    def note(self, binding: Binding, args: tuple[Any, ...]) -> Callable[..., Any]:
        problem = binding.spec.shape.problem(binding.spec.shape.describe((*args, *binding.constants)))
        assert problem is not None
        self.problems[problem.key] = (binding, problem)
        return binding.default


@pytest.fixture
def noted() -> Callable[[], AbstractContextManager[Problems]]:
    """``with noted() as problems:`` gives the problems of all calls in the block by key, each with a binding that meets it."""

    @contextmanager
    def note() -> Iterator[Problems]:
        noting = Noting()
        with collecting(noting):
            yield noting.problems

    return note
