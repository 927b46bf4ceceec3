"""What a runner promises: it offers what it lists, gives the default's output, leaves its arguments alone, and may refuse."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from tunebook.devices import device_of
from tunebook.dispatch import Binding, Scope
from tunebook.errors import UsageError
from tunebook.measure import Case, Finding, Reference, check
from tunebook.ops import OpSpec, Runner
from tunebook.records import Problem, Tactic
from tunebook.testing._bits import check_bits
from tunebook.testing._failure import UnavailableError, broken, no_exception
from tunebook.testing._inputs import SEEDS, Given, Inputs, copies, is_tensor, same_bits, shown
from tunebook.testing._layouts import check_layouts
from tunebook.testing._versions import check_version

_REMEDIES = {
    "correctness": "it must give what the op's own function gives, on every size of a bucket",
    "runtime": "let supports= say why it does not fit, before it is run",
    "memory": "let workspace= say what a call takes, so that it is refused for it",
    "timeout": "a tactic that is so slow is never chosen; leave it out of the space",
}


def check_runner(op: OpSpec, name: str, problems: Sequence[Given]) -> tuple[Tactic, ...]:
    """Check what a runner promises, on these problems (as for `check_op`); give the tactics that were run.

    It is available or says why not; its version can be computed and covers its code; `supports` and `within` answer for
    every tactic; a tactic that is not refused gives the default's output on every size of a bucket and on the op's extremes,
    in memory of its own, and leaves arguments and weights alone; `prepare`, `layout`, `restore`, `convert`, `bits`, `bind`
    and `workspace` keep to what `OpSpec.runner` says of them.

    Tactics run in this process: one that crashes ends it.

    Raises ContractError for what is broken, UnavailableError where the runner cannot run here, UsageError for a runner that
    the op does not have.
    """
    runner = op.runners.get(name)
    if runner is None:
        raise UsageError(f"op {op.name} has no runner {name!r}; it has {', '.join(op.runners) or 'none'}")
    thing = f"runner {name} of op {op.name}"
    reason = runner.requirement.reason()
    if reason is not None and reason.startswith("availability check failed"):
        broken(thing, reason, "let available= return None, True, False or the reason as text")
    check_version(thing, runner)
    if reason is not None:
        raise UnavailableError(f"{thing}: {reason}")
    tried: dict[Tactic, None] = {}
    refused: dict[str, None] = {}
    for given in problems:
        inputs = Inputs.of(op, given)
        fits = _offered(thing, runner, inputs.problem, refused)
        if fits:
            _check_problem(thing, runner, inputs, fits)
        tried |= dict.fromkeys(fits)
    if not tried:
        why = f" ({'; '.join(refused)})" if refused else ""
        broken(thing, f"it takes none of the problems that were given{why}", "give one that it is made for")
    return tuple(tried)


def _offered(thing: str, runner: Runner, problem: Problem, refused: dict[str, None]) -> list[Tactic]:
    """The tactics that fit a problem; the reasons of the others are added to `refused`."""
    with no_exception(thing, f"{problem}: its within raises", "let it return True or False for every problem"):
        space = runner.space_of(problem)
    fits = []
    for tactic in space:
        if Tactic.parse(tactic.name) != tactic or not runner.offers(Tactic.parse(tactic.name)):
            broken(
                thing, f"{tactic.name} does not read back as a tactic that it offers", "use plain values in its space"
            )
        first, again = runner.refusal(tactic, problem), runner.refusal(tactic, problem)
        if first is not None and first.startswith("its `supports` failed"):
            broken(thing, f"{problem}, {tactic.name}: {first}", "let supports return None or the reason as text")
        if first != again:
            broken(
                thing,
                f"{problem}, {tactic.name}: supports says {first!r}, then {again!r}",
                "judge by the problem alone",
            )
        if first is None:
            fits.append(tactic)
        else:
            refused[first] = None
    return fits


def _check_problem(thing: str, runner: Runner, inputs: Inputs, tactics: Sequence[Tactic]) -> None:
    import torch

    op, problem = inputs.spec, inputs.problem
    with torch.inference_mode():
        made = [(shown(sizes), op.split(inputs.make(sizes, seed))) for sizes in inputs.sizes() for seed in SEEDS]
        calls = [(label, dynamic) for label, (dynamic, _) in made]
        live, constants = made[-1][1]  # the weights of the last for all: they are one layer's
        device = device_of(next((value.device for value in (*live, *constants) if is_tensor(value)), "cpu"))
        with no_exception(f"op {op.name}", f"{problem}: the op itself fails:", "mend it first: check_op says more"):
            calls += op.extreme_inputs(problem, live, constants, random.Random(0))
            cases = [Case(one, op.function(*one, *constants), label, agree=op.agree) for label, one in calls]

        def layer() -> Binding:
            return Binding(op, constants, scope=Scope("contract", device=device.name.partition(":")[0]))

        reference, kept = Reference.of(cases, constants), copies(constants)
        for tactic in tactics:
            where = f"{problem}, {tactic.name}"
            _check_workspace(thing, where, runner, tactic, (*live, *constants))
            with no_exception(thing, f"{where}: preparing it raises", "let supports= say why it does not fit"):
                call = layer().bound(tactic)  # its own: no other tactic has prepared its weights
            try:
                found = check(call, reference, device)
            except SystemExit:
                broken(thing, f"{where}: it raises SystemExit", "raise an Exception: that one ends the program")
            if isinstance(found, Finding):
                if not same_bits(constants, kept):  # later outputs are wrong for it: say what came first
                    broken(thing, f"{where}: the weights were changed by the call", _REMEDIES["correctness"])
                broken(thing, f"{where}: {found.detail}", _REMEDIES.get(found.reason, "correct it"))
            _check_output(thing, where, call, cases[-1], constants)
        check_layouts(thing, runner, layer(), tactics, reference, device)
        check_bits(thing, runner, layer(), problem, tactics, [dynamic for _, dynamic in calls])


def _check_output(thing: str, where: str, call: Any, case: Case, constants: Sequence[Any]) -> None:
    """Where the default's output is contiguous, callers take views of it, which one of other strides does not allow. Where it
    is memory of its own, callers write to it.
    """
    import torch

    args = copies(case.args)
    result = call(*args)
    given, default = (_places((*some, *constants)) for some in (args, case.args))
    if _places(_tensors(result)) & given and not _places(_tensors(case.expected)) & default:
        broken(
            thing,
            f"{where}: {case.label}: its output is memory of an argument",
            "return memory of its own, as the op's own function does: who writes to it would change the argument",
        )
    for number, (got, expected) in enumerate(zip(_tensors(result), _tensors(case.expected), strict=False)):
        if expected.layout is torch.strided and expected.is_contiguous() and not got.is_contiguous():
            broken(
                thing,
                f"{where}: {case.label}: output {number} has the strides {tuple(got.stride())}, not {tuple(expected.stride())}",
                "return it contiguous, as the op's own function does: a view of it would raise",
            )


def _tensors(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in _tensors(item)]
    return [value] if is_tensor(value) else []


def _places(values: Sequence[Any]) -> set[int]:
    """Where tensors lie; an empty one lies nowhere."""
    return {value.untyped_storage().data_ptr() for value in values if is_tensor(value) and value.numel()}


def _check_workspace(thing: str, where: str, runner: Runner, tactic: Tactic, args: Sequence[Any]) -> None:
    if runner.workspace is None:
        return
    remedy = "let workspace return the bytes that one call takes beside its output"
    with no_exception(thing, f"{where}: its workspace raises", remedy):
        said: object = runner.workspace(*args, **tactic.kwargs)
    if not isinstance(said, int) or said < 0:
        broken(thing, f"{where}: its workspace is {said!r}", remedy)
