"""Pins held against what ops offer today: before one is written, and when they are listed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from tunebook.book._declared import declared_ops, why_not_offered
from tunebook.book.serving import Offers
from tunebook.errors import UsageError
from tunebook.ops import OpSpec
from tunebook.records import DEFAULT, Problem, Record, Tactic
from tunebook.store import Pins
from tunebook.store.pins import pin_target
from tunebook.tuner import available_runners


class PinState(Record, frozen=True, kw_only=True, omit_defaults=False):
    """One pin: how many problems of the cache it serves, those that it is not offered for with the reason, and `wrong`.

    `wrong` says why it serves nothing at all: the op does not offer the tactic. `declared` is false where nobody can tell,
    since the op is not declared here.
    """

    target: str
    tactic: str
    serves: int
    refused: dict[str, str]
    wrong: str = ""
    declared: bool = True


def check_pin(text: str, name: str, known: Iterable[str]) -> tuple[str, Tactic, PinState]:
    """A pin that may be written: what it is for, its tactic, and what it does to the problems of the cache (`known`).

    Raises UsageError for a target or a tactic that is none, for an op that is not declared here, and for a tactic that the op
    does not offer today.
    """
    try:
        target = pin_target(text)
    except ValueError as error:
        raise UsageError(f"{text!r}: {error}; a pin is for an op, OP@BUCKET or a problem key") from None
    try:
        tactic = Tactic.parse(name)
    except ValueError as error:
        raise UsageError(f"{error}; `tunebook show --problem TEXT` names tactics") from None
    state = _state(target, tactic, Pins(path=Path(), tactics={target: tactic}), known, declared_ops())
    if not state.declared:
        op = _op_of(target)
        raise UsageError(f"op {op!r} is not declared here; name the file that declares it: --with FILE")
    if state.wrong:
        raise UsageError(f"pin {target} = {tactic.name}: {state.wrong}")
    return target, tactic, state


def pin_states(pins: Pins, known: Iterable[str]) -> list[PinState]:
    """Every pin, with what it serves of the problems of the cache (`known`) and whether it is offered today."""
    known, ops = list(known), declared_ops()
    return [_state(target, pins.tactics[target], pins, known, ops) for target in sorted(pins.tactics)]


def offers_today() -> Offers:
    """Tells why a tactic is not offered for a problem; of ops that are not declared here nothing."""
    ops = declared_ops()

    def why(problem: Problem, tactic: Tactic) -> str | None:
        spec = ops.get(problem.op)
        return why_not_offered(spec, problem, tactic) if spec is not None else None

    return why


def _state(target: str, tactic: Tactic, pins: Pins, known: Iterable[str], ops: Mapping[str, OpSpec]) -> PinState:
    """A pin among others: what a narrower one decides is not its own."""
    mine = [p for p in map(Problem.parse, known) if (pin := pins.of(p)) is not None and pin[0] == target]
    spec = ops.get(_op_of(target))
    if spec is None:
        return PinState(target=target, tactic=tactic.name, serves=len(mine), refused={}, declared=False)
    wrong = _wrong(target, tactic, spec)
    refused = {} if wrong else {p.key: why for p in mine if (why := why_not_offered(spec, p, tactic)) is not None}
    if mine and len(refused) == len(mine):
        some = next(iter(refused))
        wrong = refused[some] if len(mine) == 1 else f"not for any of {len(mine)} problems; {some}: {refused[some]}"
    serves = 0 if wrong else len(mine) - len(refused)
    return PinState(target=target, tactic=tactic.name, serves=serves, refused=refused, wrong=wrong)


def _wrong(target: str, tactic: Tactic, spec: OpSpec) -> str:
    """Why the op cannot serve the pin, whatever problems there are; empty where it can."""
    if "|" in target:
        return why_not_offered(spec, Problem.parse(target), tactic) or ""
    bucket = target.partition("@")[2]
    if bucket:  # a bucket alone is no problem that a runner could be asked about, but the op must have its dimensions
        dims = Problem.parse(f"{spec.name}|||{bucket}")
        if (why := why_not_offered(spec, dims, DEFAULT)) is not None:
            return why
    if tactic == DEFAULT:
        return ""
    runner = available_runners(spec).get(tactic.runner)
    if runner is None:
        known = spec.runners.get(tactic.runner)
        why = known.requirement.reason() if known is not None else None
        if why:
            return f"runner {tactic.runner} is not available: {why}"
        return f"runner {tactic.runner} is not offered; there are {', '.join(['default', *spec.runners])}"
    if not runner.offers(tactic):
        some = ", ".join(t.name for t in runner.combinations[:3])
        more = f" and {len(runner.combinations) - 3} more" if len(runner.combinations) > 3 else ""
        return f"the op does not offer this tactic; of {tactic.runner} there are {some}{more}"
    return ""


def _op_of(target: str) -> str:
    return target.partition("|")[0].partition("@")[0]
