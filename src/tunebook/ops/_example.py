"""Example inputs: a call of a problem, made from its key and a seed alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunebook.errors import OpError
from tunebook.records import Problem, Scalar

if TYPE_CHECKING:
    from tunebook.ops._spec import OpSpec

#: ``example(problem, sizes, seed)`` gives the arguments of a call of `problem`, constants included, in the order of the op's
#: signature: with exactly these `sizes` of the dynamic dimensions, and the same values for the same seed. Keyword-only
#: parameters with a default stand for what a key does not tell.
Example = Callable[..., Sequence[Any]]


def example_options(spec: OpSpec) -> dict[str, Scalar]:
    """What the op's example lets be chosen beside sizes and seed, with the defaults; nothing without an example."""
    if spec.example is None:
        return {}
    parameters = inspect.signature(spec.example).parameters.values()
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY and isinstance(parameter.default, bool | int | float | str)
    }


def example_inputs(
    spec: OpSpec, problem: Problem, sizes: Mapping[str, int], seed: int, **options: Scalar
) -> tuple[Any, ...]:
    """All arguments of a call of `problem`, as the op's example makes them.

    Raises OpError for an op without an example, for one that fails, and where the call, described back, is another problem or
    has other sizes.
    """
    if spec.example is None:
        raise OpError(
            f"op {spec.name} cannot make inputs by itself; give it an example: "
            f"tb.op({spec.name!r}, …, example=function), where function(problem, sizes, seed) returns its arguments"
        )
    try:
        args = tuple(spec.example(problem, sizes, seed, **options))
        if len(args) != len(spec.signature.parameters):
            raise OpError(f"it gives {len(args)} arguments, and the op takes ({', '.join(spec.signature.parameters)})")
        description = spec.shape.describe(args)
        made = spec.shape.problem(description, problem.policy)
    except Exception as error:
        what = str(error) if isinstance(error, OpError) else f"{type(error).__name__}: {error}"
        raise OpError(f"op {spec.name}: its example for {problem} fails: {' '.join(what.split())}") from error
    if made != problem:
        differences = "a size has no bucket" if made is None else "; ".join(problem.differences(made))
        raise OpError(f"op {spec.name}: its example for {problem} is a call of another problem ({differences})")
    if dict(description.sizes) != dict(sizes):
        raise OpError(f"op {spec.name}: its example has the sizes {_shown(description.sizes)}, not {_shown(sizes)}")
    return args


def _shown(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items()) or "none"
