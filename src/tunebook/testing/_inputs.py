"""The calls that an op and its runners are tried on: made by the op's example, or drawn from a call that is given."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunebook.errors import OpError, UsageError
from tunebook.ops import OpSpec, example_inputs
from tunebook.records import Problem
from tunebook.testing._failure import ContractError, broken, no_exception

#: A problem, its key, or all arguments of a call of it.
Given = Problem | str | Sequence[Any]
#: So many different inputs of the same sizes are tried.
SEEDS = (0, 1)


@dataclass(frozen=True)
class Inputs:
    """The calls of one problem. `live` are all arguments of a call of it, where the op is to make no inputs itself."""

    spec: OpSpec
    problem: Problem
    live: tuple[Any, ...] | None = None

    @classmethod
    def of(cls, spec: OpSpec, given: Given) -> Inputs:
        """Raises UsageError for what names no problem of the op, ContractError for a call that the op cannot describe."""
        thing = f"op {spec.name}"
        if isinstance(given, str):
            try:
                given = Problem.parse(given)
            except ValueError as error:
                raise UsageError(f"{thing}: {error}") from error
        if isinstance(given, Problem):
            if given.op != spec.name:
                raise UsageError(f"{thing}: {given} is a problem of the op {given.op}")
            if spec.example is None:
                broken(
                    thing, f"nothing makes inputs of {given}", "declare it with example=…, or give a call's arguments"
                )
            return cls(spec, given)
        live = tuple(given)
        if len(live) != len(spec.signature.parameters):
            raise UsageError(f"{thing}: a call has the arguments ({', '.join(spec.signature.parameters)})")
        with no_exception(thing, "describing a call raises", "its describe has to take every call that is tuned"):
            problem = spec.shape.problem(spec.shape.describe(live))
        if problem is None:
            broken(thing, "a size of the given call has no bucket", "give a smaller call, or raise the bucket's max")
        return cls(spec, problem, live)

    def sizes(self) -> list[dict[str, int]]:
        """The sizes at both edges of the bucket and one between, each once: where all has to be right."""
        by_name, dims = self.spec.shape.by_name, self.problem.dims
        unknown = [dim.name for dim in dims if dim.name not in by_name]
        if unknown:
            raise UsageError(f"op {self.spec.name}: {self.problem} has a dimension {unknown[0]}, the op has none")
        edges = {dim.name: by_name[dim.name].edges(dim.size, dim.size) for dim in dims}
        found = [
            {name: low for name, (low, _) in edges.items()},
            {name: (low + high) // 2 for name, (low, high) in edges.items()},
            {name: high for name, (_, high) in edges.items()},
        ]
        return [sizes for place, sizes in enumerate(found) if sizes not in found[:place]]

    def make(self, sizes: Mapping[str, int], seed: int) -> tuple[Any, ...]:
        """All arguments of a call of these sizes. Raises ContractError where the op's own hooks fail."""
        try:
            if self.live is None:
                return example_inputs(self.spec, self.problem, sizes, seed)
            dynamic, constants = self.spec.split(self.live)
            return (*self.spec.shape.resample(dynamic, sizes, random.Random(seed)), *constants)
        except OpError as error:
            raise ContractError(f"{error}; the example has to make every call of a problem") from error
        except Exception as error:
            raise ContractError(
                f"op {self.spec.name}: its resample to {dict(sizes)} raises {type(error).__name__}: {error}; "
                "it has to make every size of a bucket from a live call"
            ) from error


def shown(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items()) or "its only size"


def is_tensor(value: Any) -> bool:
    return hasattr(value, "untyped_storage")


def copies(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(value.clone() if is_tensor(value) else value for value in values)


def same_bits(one: Any, other: Any) -> bool:
    """Whether two values, or containers of them, are equal bit by bit."""
    import torch

    if isinstance(one, tuple | list):
        return (
            isinstance(other, tuple | list)
            and len(one) == len(other)
            and all(same_bits(a, b) for a, b in zip(one, other, strict=True))
        )
    if is_tensor(one) != is_tensor(other):
        return False
    if not is_tensor(one):
        return bool(one == other)
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    flat = [value.detach().contiguous().reshape(-1).view(torch.uint8) for value in (one, other)]
    return bool(torch.equal(*flat))
