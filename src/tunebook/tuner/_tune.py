"""Tuning one problem: enter, calibrate, race, choose; and going on where the time ended before the choice was sure."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tunebook.devices import Device
from tunebook.dispatch import tensor_bytes
from tunebook.measure import USUAL, Budget, Candidate, Effort, RaceResult, calibrate, failure, race
from tunebook.records import DEFAULT, Tactic, Verdict
from tunebook.tuner._enter import Entrance, Ground
from tunebook.tuner._entrants import Answer, Field
from tunebook.tuner._held import Held
from tunebook.tuner._lineup import Lineup, at_rest, lineup_of
from tunebook.tuner._replicas import replicas
from tunebook.tuner._tasks import Task
from tunebook.tuner._verdict import Standing, Trial, judge, left_out, news

#: A race that goes on runs at least so many rounds, if the whole budget lasts: fewer are not worth binding its tactics anew.
SLICE_ROUNDS = 4


@dataclass(frozen=True)
class Settled:
    """A verdict with the trials that led to it, as far as they are new, and the race that may go on, if it may."""

    verdict: Verdict
    trials: tuple[Trial, ...]
    open: Standing | None = None


class ProblemTuner:
    """Settles problems on one device. Everything random comes from `rng`.

    `memory_limit` is for one call of a tactic, `held` for the prepared weights of all, `effort` says how far one race goes.
    """

    def __init__(
        self,
        device: Device,
        rng: random.Random,
        *,
        memory_limit: int,
        held: Held | None = None,
        effort: Effort = USUAL,
        run: str = "",
    ) -> None:
        self.device = device
        self.rng = rng
        self.held = held or Held(memory_limit)
        self.effort = effort
        self.run = run
        self._entrance = Entrance(device, rng, memory_limit, self.held)

    def settle(
        self,
        task: Task,
        field: Field,
        known: Answer | None,
        before: Verdict | None,
        seconds: float,
        rounds: int | None = None,
    ) -> Settled:
        """Race `field` on `task` for about `seconds`, and at most `rounds` for now, and judge.

        A failing default is a bug of the model and raises.
        """
        import torch

        budget = Budget(seconds, self.device)
        with torch.inference_mode():
            try:
                ground = self._ground(task)
                _ = ground.reference
            except Exception as error:
                if task.seen:
                    raise
                why = failure(error, "the default fails at a size that it was not called with")
                return self.leave_out(task, field, why.detail)
            lineup = lineup_of(field, self.rng)
            self._entrance.enter(lineup, ground, budget)
            inner = calibrate(lineup.contenders[0], self.device).inner
            result, _ = self._race(lineup, inner, budget.over, rounds=rounds)
        size = tensor_bytes(ground.inputs)
        return self._settled(Standing(task, field, known, before, ground.layers, size, lineup, result, inner), budget)

    def go_on(self, standing: Standing, seconds: float, over: Callable[[], bool] = lambda: False) -> Settled:
        """Go on for about `seconds`, and judge anew: first with tactics that were not reached, then with the race.

        Its samples count on, unless a tactic enters late or leaves: then the race begins again among those that are left
        and the newcomers. `over()` ends it at once.
        """
        import torch

        budget = Budget(seconds, self.device)
        lineup, result = standing.lineup, standing.result
        left = {entry.name for entry in result.survivors}
        lineup.admitted = {name: candidate for name, candidate in lineup.admitted.items() if name in left}
        before = set(lineup.admitted)
        rounds = 0

        def stop() -> bool:
            nonlocal rounds
            rounds += 1
            return over() or (budget.over() and rounds >= SLICE_ROUNDS)

        with torch.inference_mode():
            if lineup.unreached:
                self._entrance.enter(lineup, self._ground(standing.task), budget)
            elif not lineup.contenders:
                self._entrance.line_up(lineup, self._ground(standing.task))
            same = set(lineup.admitted) == before
            standing.result, again = self._race(lineup, standing.inner, stop, result if same else None)
        if again or not same:
            standing.begin_again(result)
        return self._settled(standing, budget)

    def park(self, standing: Standing) -> None:
        """Let go of what a race holds; where it goes on, its tactics are bound anew."""
        for entry in standing.result.entries:
            entry.candidate = at_rest(entry.candidate)
        standing.lineup.contenders.clear()
        self.held.unpin(standing.key)

    def leave_out(self, task: Task, field: Field, why: str = "the budget was spent") -> Settled:
        """A problem that was not measured."""
        return Settled(left_out(task, field, self.run, why), ())

    def _ground(self, task: Task) -> Ground:
        layers = replicas(task.family.layers)
        inputs = task.inputs(task.sizes, self.rng, layers)
        return Ground(task, layers, inputs, self.device, self.rng)

    def _race(
        self,
        lineup: Lineup,
        inner: int,
        stop: Callable[[], bool],
        earlier: RaceResult | None = None,
        rounds: int | None = None,
    ) -> tuple[RaceResult, bool]:
        """Race the line-up, on from `earlier` if given; where a tactic fails on the way, again without it.

        For it may have driven out others. The second value says whether the race began again.
        """
        again = not self._met(lineup) and earlier is not None
        earlier = None if again else earlier
        while True:
            bound: dict[str, Candidate] = {candidate.name: candidate for candidate in lineup.contenders}
            if earlier is not None:  # those that are out keep their samples, and are not called
                for entry in earlier.entries:
                    entry.candidate = bound.get(entry.name, entry.candidate)
                bound = {entry.name: entry.candidate for entry in earlier.entries}
            result = race(
                list(bound.values()),
                DEFAULT.name,
                self.device,
                inner=inner,
                rng=self.rng,
                max_rounds=min(rounds or self.effort.max_rounds, self.effort.max_rounds),
                accepted_loss=self.effort.accepted_loss,
                stop=stop,
                earlier=earlier,
            )
            failed = {entry.name: entry.failed for entry in result.entries if entry.failed is not None}
            if not failed:
                return result, again
            for name, finding in failed.items():
                lineup.reject(Tactic.parse(name), finding)
            lineup.contenders = [candidate for candidate in lineup.contenders if candidate.name not in failed]
            earlier, again = None, True

    def _met(self, lineup: Lineup) -> bool:
        """Call each tactic once on every layer but the first, which its check met; who fails is rejected, and False tells so.

        Memory that lay idle for seconds, as prepared weights do while other tactics are checked, may take several times as
        long at its first touch (the host took it back, or its pages are not mapped yet). In service it does not lie idle.
        """
        count = len(lineup.contenders)
        for candidate in list(lineup.contenders):
            try:
                for call in candidate.calls[1:]:
                    call()
            except Exception as error:
                if candidate.tactic == DEFAULT:
                    raise
                lineup.reject(candidate.tactic, failure(error, "before the race"))
                lineup.contenders.remove(candidate)
        return len(lineup.contenders) == count

    def _settled(self, standing: Standing, budget: Budget) -> Settled:
        """The verdict by now. A race that may go on keeps the weights of those that are left; another keeps nothing."""
        lineup, result = standing.lineup, standing.result
        standing.spent += budget.spent()
        standing.cut = result.stopped == "time" or (
            result.stopped == "rounds" and result.rounds < self.effort.max_rounds
        )
        verdict, trials = judge(standing, self.run), news(standing)
        left = {result.default.name, *(entry.name for entry in result.survivors)}
        lineup.contenders = [candidate for candidate in lineup.contenders if candidate.name in left]
        for entry in result.entries:
            if entry.name not in left:
                entry.candidate = at_rest(entry.candidate)
        unsure = verdict.status == "unresolved" or (
            verdict.status == "likely" and result.loss > self.effort.accepted_loss
        )
        if unsure and (lineup.unreached or (standing.cut and result.rounds < self.effort.max_rounds)):
            layouts = {candidate.layout for candidate in lineup.contenders}
            self.held.pin(standing.key, standing.layers, layouts, standing.inputs)
            return Settled(verdict, trials, standing)
        self.park(standing)
        return Settled(verdict, trials)
