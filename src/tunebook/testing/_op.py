"""What an op promises: keys that read back, buckets in order, an example that fits, a default that is a function."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from tunebook.errors import OpError
from tunebook.measure import compare
from tunebook.ops import Bucket, OpSpec
from tunebook.records import Problem
from tunebook.testing._failure import broken, no_exception
from tunebook.testing._inputs import SEEDS, Given, Inputs, copies, is_tensor, same_bits, shown

#: Every size up to this one is rounded, and those around each power of two up to the other.
LARGEST_EACH, LARGEST_SIZE = 2048, 1 << 20


def check_op(op: OpSpec, problems: Sequence[Given]) -> None:
    """Check what an op promises, on these problems.

    problems: keys or `Problem`s, of which the op's example makes inputs; or tuples of all arguments of a call. Small ones
              do: what is checked does not depend on the size.

    Of each: the key reads back; the example makes calls of just that problem and of the sizes asked for, the same ones for
    the same seed; the default takes them, leaves them alone and agrees with itself; inputs of other sizes can be made from
    them; extremes are calls of the problem; `agree` accepts what is right and refuses what is not. Of every bucket rule:
    it is in order, and rounding twice is rounding once.

    Raises ContractError for what is broken, UsageError for a problem that is none of the op's.
    """
    thing = f"op {op.name}"
    for name, bucket in op.shape.by_name.items():
        _check_bucket(f"{thing}, dimension {name}", bucket)
    if not problems:
        broken(thing, "no problem was given", "name at least one, as a key or as the arguments of a call")
    for given in problems:
        inputs = Inputs.of(op, given)
        _check_key(thing, inputs.problem)
        for sizes in inputs.sizes():
            _check_call(thing, inputs, sizes)
        _check_resample(thing, inputs)


def _check_bucket(thing: str, bucket: Bucket) -> None:
    if not bucket.rule:
        broken(thing, "its bucket's rule has no name", "name it: the name is a part of every key")
    tried = {*range(1, LARGEST_EACH + 1)}
    while (power := max(tried)) < LARGEST_SIZE:
        power = 1 << power.bit_length()
        tried |= {power - 1, power, power + 1}
    before, ended = 0, 0
    for size in sorted(tried):
        with no_exception(thing, f"rule {bucket.rule!r} fails for {size}:", "correct its function, or its rounding="):
            found = bucket.of(size)
        if found is None:
            ended = ended or size
            continue
        if ended:
            broken(thing, f"size {ended} has no bucket and {size} has one", "set max= to the largest size")
        if found < before:
            broken(
                thing,
                f"rule {bucket.rule!r} rounds {size} to {found}, and a smaller size to {before}",
                "a larger size must not have a smaller bucket",
            )
        if bucket.of(found) != found:
            broken(
                thing,
                f"rule {bucket.rule!r} rounds {size} to {found}, and that to {bucket.of(found)}",
                "a bucket's size must be its own bucket",
            )
        before = found


def _check_key(thing: str, problem: Problem) -> None:
    with no_exception(thing, f"the key {problem.key!r} does not read back:", "describe it with names and texts"):
        again = Problem.parse(problem.key)
    if again != problem:
        broken(
            thing,
            f"{problem.key!r} reads back as another problem ({'; '.join(problem.differences(again))})",
            "describe attributes and dtypes by non-empty texts",
        )


def _check_call(thing: str, inputs: Inputs, sizes: dict[str, int]) -> None:
    where = f"{inputs.problem}, {shown(sizes)}"
    first, again, other = (inputs.make(sizes, seed) for seed in (SEEDS[0], SEEDS[0], SEEDS[1]))
    if not same_bits(first, again):
        broken(
            thing, f"{where}: its inputs differ for the same seed", "draw them from a generator seeded with it alone"
        )
    if inputs.live is None and same_bits(first, other) and sum(_floats(value) for value in first) >= 32:
        broken(thing, f"{where}: its inputs are the same for every seed", "draw them from a generator seeded with it")
    op = inputs.spec
    described = op.shape.describe(first)
    if dict(described.sizes) != sizes or op.shape.problem(described, inputs.problem.policy) != inputs.problem:
        broken(
            thing,
            f"{where}: a call of these sizes is described as {op.shape.problem(described)}, {shown(described.sizes)}",
            "describe and resample have to agree on every size",
        )
    kept = copies(first)
    with no_exception(thing, f"{where}: the default raises", "it has to take every size of a bucket"):
        result = op.function(*first)
    if not same_bits(first, kept):
        broken(thing, f"{where}: the default changes its arguments", "write to memory of its own, and return that")
    _check_agree(thing, op, where, kept, result, op.function(*first))
    try:
        op.extreme_inputs(inputs.problem, *op.split(first), random.Random(SEEDS[0]))
    except OpError as error:
        broken(thing, f"{where}: {error}", "extremes are rare calls of the same problem and sizes")


def _check_agree(thing: str, op: OpSpec, where: str, args: Sequence[Any], result: Any, again: Any) -> None:
    """The comparison takes the default's own output for right, and others for wrong."""
    dynamic, _ = op.split(args)

    def found(got: Any) -> float | str:
        if op.agree is None:
            return compare(got, result)
        with no_exception(thing, f"{where}: its agree raises", "it has to take any output"):
            return op.agree(got, result, dynamic)

    said = found(again)
    if isinstance(said, str):
        broken(
            thing,
            f"{where}: the default does not agree with itself: {said}",
            "a default that draws at random, or keeps state, is no reference; let agree= allow for what is right",
        )
    if _floats(result) and not isinstance(found(_spoilt(result)), str):
        broken(thing, f"{where}: its agree takes an output of NaN for right", "let it compare the values")


def _check_resample(thing: str, inputs: Inputs) -> None:
    """Inputs of each edge are made from those of the largest, whichever way they came about."""
    op, sizes = inputs.spec, inputs.sizes()
    dynamic, constants = op.split(inputs.make(sizes[-1], SEEDS[0]))
    kept = copies(dynamic)
    remedy = "resample(dynamic, sizes, rng) has to make every size of a bucket from a live call"
    for wanted in sizes:
        where = f"{inputs.problem}: resampled to {shown(wanted)}"
        with no_exception(thing, f"{where} it raises", remedy):
            made = op.shape.resample(dynamic, wanted, random.Random(SEEDS[0]))
            described = op.shape.describe((*made, *constants))
        if dict(described.sizes) != wanted:
            broken(thing, f"{where} it has {shown(described.sizes)}", remedy)
        problem = op.shape.problem(described, inputs.problem.policy)
        if problem is None or problem.family != inputs.problem.family:
            broken(thing, f"{where} it is a call of {problem}", "it must change sizes alone")
        if not same_bits(dynamic, kept):
            broken(thing, f"{where} it has changed the live call", "let it copy what it changes")


def _floats(value: Any) -> int:
    """How many floating-point numbers a value holds."""
    if isinstance(value, tuple | list):
        return sum(map(_floats, value))
    return value.numel() if is_tensor(value) and value.is_floating_point() else 0


def _spoilt(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(map(_spoilt, value)) if type(value) in (tuple, list) else tuple(map(_spoilt, value))
    return value * float("nan") if _floats(value) else value
