"""Racing an op whose calls communicate: all ranks try the same tactics in the same order, and one of them decides."""

from __future__ import annotations

import functools
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from tunebook.devices import Device
from tunebook.dispatch import Binding, tensor_bytes
from tunebook.measure import (
    Budget,
    Candidate,
    Case,
    Effort,
    Finding,
    Passed,
    RaceResult,
    Reference,
    check,
    failure,
    race,
    refuse_for_memory,
)
from tunebook.records import DEFAULT, Rejected, Tactic, Verdict
from tunebook.tuner._enter import ENTRY_SHARE
from tunebook.tuner._entrants import Field, Selection, entrants
from tunebook.tuner._journal import Journal
from tunebook.tuner._lineup import Lineup, lineup_of
from tunebook.tuner._passes import Todo
from tunebook.tuner._ranks._agree import Agreement, ElsewhereError
from tunebook.tuner._ranks._group import Group
from tunebook.tuner._replicas import Contender, conditions, contender, replicas
from tunebook.tuner._tune import Settled
from tunebook.tuner._verdict import Standing, judge, left_out

#: The least duration of a sample, in seconds: ranks begin it some hundred microseconds apart.
MIN_SAMPLE_S = 5e-3
#: Samples of the default before a race.
WARM_UP = 6


class Lockstep:
    """Settles problems on all ranks at once; each calls `settle` with the same problems in the same order.

    What is random comes from `seed`, so that it is the same everywhere.
    """

    def __init__(
        self,
        group: Group,
        device: Device,
        selection: Selection,
        effort: Effort,
        journal: Journal,
        *,
        seed: int,
        memory_limit: int,
        run: str,
    ) -> None:
        self._group = group
        self._device = device
        self._selection = selection
        self._effort = effort
        self._journal = journal if group.leads else Journal()
        self._seed = seed
        self._memory_limit = memory_limit
        self._run = run

    def settle(self, item: Todo, seconds: float) -> Settled:
        """Race a problem for about `seconds` of the leader's, and judge. Its verdict is that of all ranks.

        Raises RankError, on all ranks, where the default fails on one, or where a tactic left the group unusable.
        """
        import torch

        self._group.enter(f"racing {item.key} in lock-step")
        with torch.inference_mode(), _released(item.task.family.layers):
            settled = self._settle(item, seconds)
        verdict = self._group.tell("verdict", settled.verdict, Verdict)
        return replace(settled, verdict=verdict)

    def _settle(self, item: Todo, seconds: float) -> Settled:
        task, budget = item.task, Budget(seconds, self._device)
        agreement = Agreement(self._group, item.key, self._device)
        rng = random.Random(f"{self._seed} {item.key}")
        field = self._field(item)
        if agreement.decided([], "over" if budget.over() else None).stopped:
            return Settled(left_out(task, field, self._run, "the budget was spent"))
        count = agreement.least(len(replicas(task.family.layers)))
        layers = replicas(task.family.layers)[:count]
        reference = self._reference(agreement, item, layers[0])
        inputs = task.inputs(task.sizes, random.Random(rng.random()), layers)
        circumstances = conditions(task.problem, layers, inputs, self._device)
        journal = self._journal.begin(item.key, field.offered, (*field.unavailable, *field.rejected), None)
        lineup = lineup_of(field, rng, journal)
        lineup.look_at_default(1e-9)

        def bind(tactic: Tactic) -> Contender:
            return contender(tactic, layers, inputs, circumstances)

        lineup.contenders = [bind(DEFAULT)]
        while lineup.unreached:
            spent = lineup.seen > 1 and budget.spent() > ENTRY_SHARE * budget.seconds
            told = agreement.decided([next(lineup.order).name], "time" if spent else None)
            if told.stopped:
                break
            self._admit(agreement, lineup, Tactic.parse(told.names[0]), layers[0], reference, bind)
        inner = self._inner(agreement, lineup.contenders[0])
        probe = functools.partial(self._probe, agreement, reference=reference, layer=layers[0])
        result = self._race(agreement, lineup, inner, f"{self._seed} race {item.key}", budget, probe)
        size = tensor_bytes(inputs)
        standing = Standing(task, field, item.known, item.before, size, lineup, result, inner, budget.spent())
        standing.cut = result.stopped == "time"
        return Settled(judge(standing, self._run))

    def _field(self, item: Todo) -> Field:
        """Who races: what fits on every rank."""
        task = item.task
        version = task.family.layers[0].default_version
        field = entrants(task.problem, task.spec, version, self._selection, item.known)
        mine = [tactic.name for queue in (field.first[1:], *field.queues) for tactic in queue]
        every = self._group.gather("field", mine, list[str])
        common = set(mine).intersection(*every)
        for name in mine:
            if name not in common:
                lacking = next(self._group.names[p] for p, names in enumerate(every) if name not in names)
                field.rejected.append(
                    Rejected(tactic=name, reason="constraints", detail=f"{lacking} does not offer it for this problem")
                )
        field.first = [DEFAULT, *(tactic for tactic in field.first[1:] if tactic.name in common)]
        field.queues = [[tactic for tactic in queue if tactic.name in common] for queue in field.queues]
        return field

    def _reference(self, agreement: Agreement, item: Todo, layer: Binding) -> Reference:
        """The default's output on inputs of this rank, of sizes that the leader says: at both edges of the bucket."""
        task, rng = item.task, random.Random(self._seed)
        sizes = self._group.tell("edges", task.edge_sizes() if self._group.leads else None, list[dict[str, int]])
        default = agreement.together(DEFAULT, layer.default)
        cases = []
        for some in sizes:
            (args,) = task.inputs(some, rng, [layer])
            try:
                expected = default(*args)
            except ElsewhereError as error:
                assert agreement.cause is not None
                raise agreement.fault(agreement.cause) from error
            label = ", ".join(f"{name}={size}" for name, size in some.items()) or "its only size"
            cases.append(Case(args, expected, label, agree=layer.spec.agree))
        return Reference.of(cases, layer.constants)

    def _admit(
        self,
        agreement: Agreement,
        lineup: Lineup,
        tactic: Tactic,
        layer: Binding,
        reference: Reference,
        bind: Callable[[Tactic], Contender],
    ) -> None:
        lineup.seen += 1

        def attempt() -> Passed | Finding:
            runner = layer.spec.runner_of(tactic)
            assert runner is not None  # the field was made of what is offered
            for case in reference.cases if runner.workspace is not None else ():
                args = (*case.args, *layer.constants)
                refusal = refuse_for_memory(_partial(runner.workspace, tactic), args, self._memory_limit)
                if refusal is not None:
                    return refusal
            try:
                bound[tactic.name] = bind(tactic)
                call = layer.bound(tactic)
            except Exception as error:  # noqa: BLE001 - a runner's own `prepare`; its failure is the finding
                return failure(error, "preparing weights")
            return check(agreement.together(tactic, call), reference, self._device)

        bound: dict[str, Contender] = {}
        outcome = agreement.attempt(tactic, attempt)
        if isinstance(outcome, Finding):
            lineup.reject(tactic, outcome)
            self._probe(agreement, tactic, reference, layer)
            return
        lineup.admit(bound[tactic.name], Passed(outcome.error, max(outcome.seconds, 1e-9)))
        lineup.contenders.append(bound[tactic.name])

    def _probe(self, agreement: Agreement, tactic: Tactic, reference: Reference, layer: Binding) -> None:
        """After a failure in a call: whether collectives work at all any more."""
        cause = agreement.cause
        if cause is None or cause.step not in ("after a call", "sample"):
            return
        agreement.cause = None
        try:
            agreement.together(DEFAULT, layer.default)(*reference.cases[-1].args)
        except ElsewhereError as error:
            what = f"{tactic.name}, which left the collectives of the group unusable,"
            raise agreement.fault(cause, what) from error

    def _inner(self, agreement: Agreement, default: Candidate) -> int:
        """How many calls make a sample: whole turns round the replicas where a turn is short enough."""
        replicas = len(default.calls)
        level = statistics.median([agreement.sample(default, replicas, 0) for _ in range(WARM_UP)][WARM_UP // 2 :])
        inner = max(1, math.ceil(MIN_SAMPLE_S / level))
        if default.flush is not None or inner > replicas // 2:
            turns = 1 if default.flush is not None else math.ceil(inner / replicas)
            inner = turns * replicas
        return inner

    def _race(
        self,
        agreement: Agreement,
        lineup: Lineup,
        inner: int,
        seed: str,
        budget: Budget,
        probe: Callable[[Tactic], None],
    ) -> RaceResult:
        """Race the line-up; where a tactic fails on the way, again without it, for it may have driven out others."""
        while True:
            lineup.journal.race([candidate.name for candidate in lineup.contenders], inner, True)
            result = race(
                lineup.contenders,
                DEFAULT.name,
                self._device,
                inner=inner,
                rng=random.Random(seed),
                max_rounds=self._effort.max_rounds,
                accepted_loss=self._effort.accepted_loss,
                stop=budget.over if self._group.leads else lambda: False,
                watch=lineup.journal,
                conduct=_Conduct(agreement, probe),
            )
            failed = {entry.name: entry.failed for entry in result.entries if entry.failed is not None}
            if not failed:
                return result
            for name, finding in failed.items():
                lineup.reject(Tactic.parse(name), finding)
            lineup.contenders = [candidate for candidate in lineup.contenders if candidate.name not in failed]


class _Conduct:
    """How the ranks conduct a race: the slowest one's time counts, and the leader decides."""

    def __init__(self, agreement: Agreement, probe: Callable[[Tactic], None]) -> None:
        """`probe` is called after a tactic has failed."""
        self._agreement = agreement
        self._probe = probe

    def sample(self, candidate: Candidate, inner: int, offset: int) -> float:
        try:
            return self._agreement.sample(candidate, inner, offset)
        except ElsewhereError:
            self._probe(Tactic.parse(candidate.name))
            raise

    def decided(self, left: Sequence[str], stopped: str | None) -> tuple[Sequence[str], str | None]:
        decision = self._agreement.decided(left, stopped)
        return decision.names, decision.stopped


def _partial(workspace: Callable[..., int] | None, tactic: Tactic) -> Callable[..., int] | None:
    return None if workspace is None else functools.partial(workspace, **tactic.kwargs)


@contextmanager
def _released(layers: Sequence[Binding]) -> Iterator[None]:
    """Weights that are prepared in the block are released after it."""
    before = {id(layer): set(layer.prepared.layouts) for layer in layers}
    try:
        yield
    finally:
        for layer in layers:
            layer.prepared.keep_only(before[id(layer)])
