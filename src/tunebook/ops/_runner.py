"""A runner: a family of implementations of an op, and the tactics that it offers for a problem."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tunebook.errors import OpError
from tunebook.ops._requires import Requirement
from tunebook.ops._version import runner_version
from tunebook.records import Offered, Problem, Scalar, Tactic

#: ``{"block": (32, 64), "threads": (1, 2)}``: every combination is a tactic. Or the combinations themselves.
Space = Mapping[str, Sequence[Scalar]] | Iterable[Mapping[str, Scalar]]


@dataclass(frozen=True)
class Runner:
    """A runner of one op.

    `function(*dynamic, *constants, **params)`, or `function(*dynamic, prepared, **params)` where `prepare` is given.
    `supports(problem, **params)` gives the reason why a tactic does not fit a problem, or None. `within`, `restore`,
    `convert`, `bits` and `bind` are explained in `OpSpec.runner`.
    """

    op: str
    name: str
    function: Callable[..., Any]
    combinations: tuple[Tactic, ...]
    requirement: Requirement
    prepare: Callable[..., Any] | None = None
    layout: Callable[..., str] | None = None
    workspace: Callable[..., int] | None = None
    supports: Callable[..., str | None] | None = None
    within: Callable[..., bool] | None = None
    restore: Callable[..., Sequence[Any]] | None = None
    convert: Callable[..., Any] | None = None
    bits: Callable[..., str] | None = None
    bind: Callable[..., Callable[..., Any]] | None = None
    declared_version: str | None = None
    sources: tuple[str | Path, ...] = ()
    libraries: tuple[str, ...] = ()
    origin: str = field(default="tunebook")

    @cached_property
    def version(self) -> str:
        """Covers the function's module, its local imports, the shared objects it loads and the sources it names."""
        return runner_version(
            self.function, sources=self.sources, declared=self.declared_version, libraries=self.libraries
        )

    @cached_property
    def offered(self) -> Offered:
        """The version and the digest of the tactic space: what a verdict remembers of this runner."""
        names = "\n".join(sorted(tactic.name for tactic in self.combinations))
        return Offered(version=self.version, space=hashlib.sha256(names.encode()).hexdigest()[:12])

    def offers(self, tactic: Tactic) -> bool:
        return tactic in self._offered_set

    @cached_property
    def _offered_set(self) -> frozenset[Tactic]:
        return frozenset(self.combinations)

    def space_of(self, problem: Problem) -> tuple[Tactic, ...]:
        """The tactics that are worth a thought on `problem`, as declared; some may be refused yet."""
        if self.within is None:
            return self.combinations
        return tuple(tactic for tactic in self.combinations if self.within(problem, **tactic.kwargs))

    def refusal(self, tactic: Tactic, problem: Problem) -> str | None:
        """Why `tactic` does not fit `problem`, or None. `supports` may also say just True or False."""
        if self.supports is None:
            return None
        try:
            said: object = self.supports(problem, **tactic.kwargs)
        except Exception as error:  # noqa: BLE001 - a runner's own predicate; what it raises is the reason
            return f"its `supports` failed: {type(error).__name__}: {error}"
        if said is None or said is True:
            return None
        return said if isinstance(said, str) and said else "not supported"

    def numerics(self, tactic: Tactic) -> str | None:
        """What tactics of this runner have in common that give equal bits whatever the batch; None without that promise."""
        return None if self.bits is None else f"{self.name}:{self.bits(**tactic.kwargs)}"

    def layout_of(self, tactic: Tactic) -> str:
        """The name of the weight layout that a tactic needs; empty where the model's own weights serve."""
        if self.prepare is None:
            return ""
        return f"{self.name}:{self.layout(**tactic.kwargs) if self.layout else tactic.name}"


def combinations(op: str, name: str, space: Space | None) -> tuple[Tactic, ...]:
    """The tactics of a space. Raises OpError that names what is wrong with it."""
    if space is None:
        points: list[Mapping[str, Scalar]] = [{}]
    elif isinstance(space, Mapping):
        for key, values in space.items():
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise OpError(f"op {op}, runner {name}: space[{key!r}] is {values!r}, not a sequence of values")
        points = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    else:
        points = list(space)
    if not points:
        raise OpError(f"op {op}, runner {name}: the space is empty; leave it out for a single tactic")
    try:
        tactics = tuple(Tactic(runner=name, params=tuple(point.items())) for point in points)
    except (ValueError, TypeError, AttributeError) as error:
        raise OpError(f"op {op}, runner {name}: {error}") from error
    if len(set(tactics)) != len(tactics):
        raise OpError(f"op {op}, runner {name}: the space names one tactic twice")
    return tactics
