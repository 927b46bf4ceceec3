"""Tuning one problem: enter, guard, check, calibrate, race, choose; and the verdict that comes of it."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tunebook.devices import Device
from tunebook.dispatch import Binding, tensor_bytes
from tunebook.measure import (
    MAX_ROUNDS,
    SCREENING,
    Budget,
    Case,
    Choice,
    Entry,
    Finding,
    Passed,
    RaceResult,
    Reference,
    calibrate,
    check,
    choose,
    failure,
    first_look,
    hopeless,
    race,
    refuse_for_memory,
    rescale,
)
from tunebook.records import DEFAULT, Member, Offered, Rejected, Tactic, Timed, Verdict
from tunebook.tuner._entrants import Answer, Field
from tunebook.tuner._lineup import Lineup
from tunebook.tuner._replicas import Contender, contender, replicas
from tunebook.tuner._tasks import Task

logger = logging.getLogger("tunebook.tuner")

Trial = Timed | Rejected

#: Checking and first looks may take this share of a problem's time; tactics beyond it are not reached.
ENTRY_SHARE = 0.6
#: One layer's prepared weights may take this share of the memory that is free.
PREPARE_SHARE = 0.25


@dataclass(frozen=True)
class Settled:
    """A verdict with the trials that led to it."""

    verdict: Verdict
    trials: tuple[Trial, ...]


class ProblemTuner:
    """Settles problems on one device. Everything random comes from `rng`."""

    def __init__(
        self,
        device: Device,
        rng: random.Random,
        *,
        memory_limit: int,
        max_rounds: int = MAX_ROUNDS,
        run: str = "",
    ) -> None:
        self.device = device
        self.rng = rng
        self.memory_limit = memory_limit
        self.max_rounds = max_rounds
        self.run = run

    def settle(self, task: Task, field: Field, known: Answer | None, before: Verdict | None, seconds: float) -> Settled:
        """Race `field` on `task` for about `seconds`, and judge. A failing default is a bug of the model and raises."""
        import torch

        budget = Budget(seconds, self.device)
        layers = replicas(task.family.layers)
        inputs = task.inputs(task.sizes, self.rng, layers)
        with torch.inference_mode():
            try:
                reference = Reference.of(self._cases(task, layers[0]), layers[0].constants)
            except Exception as error:
                if task.seen:
                    raise
                why = failure(error, "the default fails at a size that it was not called with")
                return self.leave_out(task, field, why.detail)
            lineup = self._enter(task, field, layers, inputs, reference, budget)
            steady = calibrate(lineup.contenders[0], self.device)
            result = self._race(lineup, steady.inner, budget)
        groups = {c.name: (c.tactic.runner, c.layout) for c in (*lineup.contenders, *lineup.screened)}
        screened = [Entry(c, [lineup.looks[c.name]], [SCREENING]) for c in lineup.screened]
        incumbent = known.tactic.name if known and known.tactic else None
        choice = choose(result, groups.__getitem__, incumbent, screened)
        timed = [_timed(entry, steady.inner, lineup.errors) for entry in (*result.entries, *screened) if entry.samples]
        before = before if known and known.tactic else None
        verdict = self._verdict(task, field, choice, result, lineup, before, budget)
        return Settled(verdict, (*field.unavailable, *lineup.rejected, *timed))

    def _race(self, lineup: Lineup, inner: int, budget: Budget) -> RaceResult:
        """Race the line-up; where a tactic fails on the way, again without it, for it may have driven out others."""
        while True:
            result = race(
                lineup.contenders,
                DEFAULT.name,
                self.device,
                inner=inner,
                rng=self.rng,
                max_rounds=self.max_rounds,
                stop=budget.over,
            )
            failed = {entry.name: entry.failed for entry in result.entries if entry.failed is not None}
            if not failed:
                return result
            for name, finding in failed.items():
                lineup.reject(Tactic.parse(name), finding)
            lineup.contenders = [candidate for candidate in lineup.contenders if candidate.name not in failed]

    def leave_out(self, task: Task, field: Field, why: str = "the budget was spent") -> Settled:
        """The verdict on a problem that was not measured: unresolved, the default serves, and that is an answer."""
        seconds = task.weight / max(1, task.calls) if task.seen else 0.0
        member = Member(tactic=DEFAULT.name, ratio=1.0, low=1.0, high=1.0)
        verdict = Verdict(
            problem=task.problem.key,
            winner=DEFAULT.name,
            status="unresolved",
            speedup=1.0,
            low=1.0,
            high=1.0,
            seconds=seconds,
            frontier=(member,),
            offered=field.offered,
            run=self.run,
            note=f"left out: {why}",
        )
        return Settled(verdict, ())

    def _enter(
        self,
        task: Task,
        field: Field,
        layers: Sequence[Binding],
        inputs: Sequence[tuple[Any, ...]],
        reference: Reference,
        budget: Budget,
    ) -> Lineup:
        """The default, and every tactic that fits the memory, prepares, gives the default's output and is not hopeless.

        Other layers' weights are prepared for those only that pass on the first layer.
        """
        lineup = Lineup(rejected=list(field.rejected))
        first = contender(DEFAULT, layers[:1], inputs)
        lineup.looks[DEFAULT.name] = first_look(first.calls[0], self.device)
        admitted: list[Contender] = []
        for tactic in field.tactics:
            if tactic == DEFAULT:
                continue
            if budget.spent() > ENTRY_SHARE * budget.seconds and admitted:
                lineup.unseen += 1
                continue
            outcome = self._admit(task, tactic, layers[0], reference, inputs)
            if isinstance(outcome, Finding):
                lineup.reject(tactic, outcome)
                continue
            candidate, passed = outcome
            lineup.errors[tactic.name] = passed.error
            lineup.looks[tactic.name] = passed.seconds
            admitted.append(candidate)
        for candidate in admitted:  # a check is no fair measure: nobody leaves without a second look
            if hopeless(lineup.looks[candidate.name], min(lineup.looks.values())):
                self._look(lineup, candidate)
        best = min(lineup.looks.values())
        lineup.contenders.append(contender(DEFAULT, layers, inputs))
        for candidate in admitted:
            if candidate.name in {rejected.tactic for rejected in lineup.rejected}:
                continue
            if hopeless(lineup.looks[candidate.name], best):
                lineup.screened.append(candidate)
                continue
            try:
                lineup.contenders.append(contender(candidate.tactic, layers, inputs))
            except Exception as error:  # noqa: BLE001 - a runner's own `prepare` on another layer's weights
                lineup.reject(
                    candidate.tactic, Finding("runtime", f"preparing weights: {type(error).__name__}: {error}")
                )
        return lineup

    def _look(self, lineup: Lineup, candidate: Contender) -> None:
        try:
            look = first_look(candidate.calls[0], self.device)
        except Exception as error:  # noqa: BLE001 - a tactic that passed its check and fails now
            lineup.reject(candidate.tactic, failure(error, "timed after its check"))
            return
        lineup.looks[candidate.name] = min(look, lineup.looks[candidate.name])

    def _admit(
        self,
        task: Task,
        tactic: Tactic,
        first: Binding,
        reference: Reference,
        inputs: Sequence[tuple[Any, ...]],
    ) -> Finding | tuple[Contender, Passed]:
        runner = task.spec.runner_of(tactic)
        if runner is None:
            return Finding("constraints", "the op does not offer it")
        if runner.workspace is not None:
            sized = _partial(runner.workspace, tactic)
            for case in reference.cases:
                refusal = refuse_for_memory(sized, (*case.args, *first.constants), self.memory_limit)
                if refusal is not None:
                    return refusal
        needed = tensor_bytes(first.constants) if runner.prepare is not None else 0
        if needed > min(self.memory_limit, PREPARE_SHARE * self.device.free_memory()):
            return Finding("memory", f"preparing weights needs about {needed / 1e9:.2f} GB, which is above the limit")
        try:
            call = first.bound(tactic)
        except Exception as error:  # noqa: BLE001 - a runner's own `prepare`; its failure is the finding
            return failure(error, "preparing weights")
        found = check(call, reference, self.device)
        if isinstance(found, Finding):
            return found
        return contender(tactic, [first], inputs), found

    def _cases(self, task: Task, layer: Binding) -> list[Case]:
        cases = []
        for sizes in task.edge_sizes():
            args = task.inputs(sizes, self.rng, [layer])[0]
            label = ", ".join(f"{name}={size}" for name, size in sizes.items()) or "its only size"
            cases.append(Case(args, layer.default(*args), label))
        return cases

    def _verdict(
        self,
        task: Task,
        field: Field,
        choice: Choice,
        result: RaceResult,
        lineup: Lineup,
        before: Verdict | None,
        budget: Budget,
    ) -> Verdict:
        offered: dict[str, Offered] = dict(field.offered)
        frontier = choice.frontier
        if before is not None:
            runners = {name: o for name, o in before.offered.items() if name not in offered}
            offered = {**runners, **offered}
            same_default = before.offered.get(DEFAULT.runner) == field.offered[DEFAULT.runner]
            frontier += _older(before, choice, result, set(field.offered), same_default)
        return Verdict(
            problem=task.problem.key,
            winner=choice.winner,
            status="unresolved" if lineup.unseen else choice.status,
            speedup=choice.speedup.value,
            low=choice.speedup.low,
            high=choice.speedup.high,
            seconds=choice.seconds,
            frontier=frontier,
            offered=offered,
            ties=choice.ties,
            rejected=tuple(lineup.rejected),
            run=self.run,
            rounds=result.rounds,
            measured=budget.spent(),
            note=_note(result, lineup),
        )


def _older(
    before: Verdict, choice: Choice, result: RaceResult, raced: set[str], same_default: bool
) -> tuple[Member, ...]:
    """What the former frontier still tells: members whose runners did not race now, against the new winner."""
    names = {entry.name for entry in result.entries}
    changed = raced - ({DEFAULT.runner} if same_default else set())  # a changed runner's former ratio says nothing now
    kept = {
        m.tactic: m for m in before.frontier if m.tactic not in names and Tactic.parse(m.tactic).runner not in raced
    }
    now_known = {member.tactic for member in choice.frontier}
    anchor = next(
        (m for m in before.frontier if m.tactic in now_known and Tactic.parse(m.tactic).runner not in changed), None
    )
    if anchor is None:
        return ()
    now = next(m for m in choice.frontier if m.tactic == anchor.tactic)
    return rescale(kept, now.ratio / anchor.ratio)


def _note(result: RaceResult, lineup: Lineup) -> str:
    unseen = f"{lineup.unseen} tactics not reached" if lineup.unseen else ""
    return ", ".join(part for part in (unseen, "its time was up" if result.stopped == "time" else "") if part)


def _timed(entry: Any, inner: int, errors: dict[str, float]) -> Timed:
    return Timed(
        tactic=entry.name,
        samples=tuple(entry.samples),
        rounds=tuple(entry.rounds),
        inner=inner,
        bytes=entry.candidate.bytes,
        error=errors.get(entry.name),
    )


def _partial(workspace: Callable[..., int], tactic: Tactic) -> Callable[..., int]:
    return lambda *args: workspace(*args, **tactic.kwargs)
