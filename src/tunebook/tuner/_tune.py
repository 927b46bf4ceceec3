"""Tuning one problem: enter, guard, check, calibrate, race, choose; and the verdict that comes of it."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tunebook.devices import Device
from tunebook.dispatch import Binding
from tunebook.measure import (
    MAX_ROUNDS,
    Budget,
    Case,
    Choice,
    Finding,
    RaceResult,
    calibrate,
    check,
    choose,
    race,
    refuse_for_memory,
    rescale,
)
from tunebook.records import DEFAULT, Member, Offered, Rejected, Tactic, Timed, Verdict
from tunebook.tuner._entrants import Answer, Field
from tunebook.tuner._replicas import Contender, contender, replicas
from tunebook.tuner._tasks import Task

logger = logging.getLogger("tunebook.tuner")

Trial = Timed | Rejected


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
        inputs = task.inputs(task.sizes, self.rng, len(layers))
        rejected = list(field.rejected)
        trials: list[Trial] = list(field.rejected)
        with torch.inference_mode():
            contenders, errors = self._enter(task, field.tactics, layers, inputs, rejected, trials, budget)
            default = contenders[0]
            steady = calibrate(default, self.device)
            result = race(
                contenders,
                default.name,
                self.device,
                inner=steady.inner,
                rng=self.rng,
                max_rounds=self.max_rounds,
                stop=budget.over,
            )
        groups = {c.name: (c.tactic.runner, c.layout) for c in contenders}
        incumbent = known.tactic.name if known and known.tactic else None
        choice = choose(result, groups.__getitem__, incumbent)
        trials += [_timed(entry, steady.inner, errors) for entry in result.entries]
        verdict = self._verdict(task, field, choice, result, rejected, before if known and known.tactic else None, budget)
        return Settled(verdict, tuple(trials))

    def leave_out(self, task: Task, field: Field) -> Settled:
        """The verdict on a problem that the budget did not reach: unresolved, the default serves, and that is an answer."""
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
            note="left out: the budget was spent",
        )
        return Settled(verdict, ())

    def _enter(
        self,
        task: Task,
        tactics: Sequence[Tactic],
        layers: Sequence[Binding],
        inputs: Sequence[tuple[Any, ...]],
        rejected: list[Rejected],
        trials: list[Trial],
        budget: Budget,
    ) -> tuple[list[Contender], dict[str, float]]:
        """The default and every tactic that fits the memory, prepares, and gives the default's output."""
        cases = self._cases(task, layers[0])
        entered, errors = [contender(DEFAULT, layers, inputs)], {DEFAULT.name: 0.0}
        for tactic in tactics:
            if tactic == DEFAULT:
                continue
            outcome = self._admit(task, tactic, layers, cases, inputs)
            if isinstance(outcome, Finding):
                found = Rejected(tactic=tactic.name, reason=outcome.reason, detail=outcome.detail)
                rejected.append(found)
                trials.append(found)
                logger.debug("%s: %s rejected (%s): %s", task.problem.key, tactic.name, found.reason, found.detail)
                continue
            entered.append(outcome[0])
            errors[tactic.name] = outcome[1]
        return entered, errors

    def _admit(
        self,
        task: Task,
        tactic: Tactic,
        layers: Sequence[Binding],
        cases: Sequence[Case],
        inputs: Sequence[tuple[Any, ...]],
    ) -> Finding | tuple[Contender, float]:
        runner = task.spec.runner_of(tactic)
        if runner is None:
            return Finding("constraints", "the op does not offer it")
        first = layers[0]
        if runner.workspace is not None:
            sized = _partial(runner.workspace, tactic)
            for case in cases:
                refusal = refuse_for_memory(sized, (*case.args, *first.constants), self.memory_limit)
                if refusal is not None:
                    return refusal
        try:
            call = first.bound(tactic)
        except MemoryError as error:
            return Finding("memory", f"preparing weights: {error or 'out of memory'}")
        except Exception as error:  # noqa: BLE001 - a runner's own `prepare`; its failure is the finding
            return Finding("runtime", f"preparing weights: {type(error).__name__}: {error}")
        found = check(call, cases, first.constants)
        if isinstance(found, Finding):
            return found
        try:
            return contender(tactic, layers, inputs), found
        except Exception as error:  # noqa: BLE001 - the same for the other layers' weights
            return Finding("runtime", f"preparing weights: {type(error).__name__}: {error}")

    def _cases(self, task: Task, layer: Binding) -> list[Case]:
        cases = []
        for sizes in task.edge_sizes():
            args = task.inputs(sizes, self.rng, 1)[0]
            label = ", ".join(f"{name}={size}" for name, size in sizes.items()) or "its only size"
            cases.append(Case(args, layer.default(*args), label))
        return cases

    def _verdict(
        self,
        task: Task,
        field: Field,
        choice: Choice,
        result: RaceResult,
        rejected: Sequence[Rejected],
        before: Verdict | None,
        budget: Budget,
    ) -> Verdict:
        offered: dict[str, Offered] = dict(field.offered)
        frontier = choice.frontier
        if before is not None:
            runners = {name: o for name, o in before.offered.items() if name not in offered}
            offered = {**runners, **offered}
            frontier += _older(before, choice, result, set(field.offered))
        return Verdict(
            problem=task.problem.key,
            winner=choice.winner,
            status=choice.status,
            speedup=choice.speedup.value,
            low=choice.speedup.low,
            high=choice.speedup.high,
            seconds=choice.seconds,
            frontier=frontier,
            offered=offered,
            ties=choice.ties,
            rejected=tuple(rejected),
            run=self.run,
            rounds=result.rounds,
            measured=budget.spent(),
            note="" if result.stopped != "time" else "its time was up",
        )


def _older(before: Verdict, choice: Choice, result: RaceResult, raced: set[str]) -> tuple[Member, ...]:
    """What the former frontier still tells: members whose runners did not race now, against the new winner."""
    names = {entry.name for entry in result.entries}
    kept = {m.tactic: m for m in before.frontier if m.tactic not in names and Tactic.parse(m.tactic).runner not in raced}
    anchor = next((m for m in before.frontier if m.tactic in {f.tactic for f in choice.frontier}), None)
    if anchor is None:
        return ()
    now = next(m for m in choice.frontier if m.tactic == anchor.tactic)
    return rescale(kept, now.ratio / anchor.ratio)


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
