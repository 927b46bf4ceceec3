"""Tuning one problem: enter, calibrate, race, choose; and going on where the time ended before the choice was sure."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass

from tunebook.devices import Device
from tunebook.measure import USUAL, Budget, Effort, RaceResult, calibrate, failure, race
from tunebook.records import DEFAULT, Verdict
from tunebook.store import Recorded
from tunebook.tuner._enter import Entrance
from tunebook.tuner._entrants import Answer, Field
from tunebook.tuner._ground import Ground
from tunebook.tuner._held import Held
from tunebook.tuner._isolation import FirstRuns
from tunebook.tuner._journal import Journal
from tunebook.tuner._lineup import Lineup, at_rest, lineup_of
from tunebook.tuner._racing import race_lineup
from tunebook.tuner._replicas import replicas
from tunebook.tuner._restore import Restored, restore
from tunebook.tuner._tasks import Task
from tunebook.tuner._verdict import Standing, judge, left_out

#: A race that goes on runs at least so many rounds, if the whole budget lasts: fewer are not worth binding its tactics anew.
SLICE_ROUNDS = 4


@dataclass(frozen=True)
class Settled:
    """A verdict, and the race that it comes from where that may go on."""

    verdict: Verdict
    open: Standing | None = None


class ProblemTuner:
    """Settles problems on one device. Everything random comes from `rng`.

    `memory_limit` is for one call of a tactic, `held` for all that is held beside the model, `effort` says how far one race goes.
    `journal` is told of all that happens; `first_runs` isolates what is not proven, without it all runs in this process.
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
        journal: Journal | None = None,
        first_runs: FirstRuns | None = None,
    ) -> None:
        self.device = device
        self.rng = rng
        self.held = held or Held(memory_limit)
        self.effort = effort
        self.run = run
        self.journal = journal or Journal()
        self._by_now: Callable[[], Settled | None] = lambda: None
        self._entrance = Entrance(device, rng, memory_limit, self.held, first_runs)

    def settle(
        self,
        task: Task,
        field: Field,
        known: Answer | None,
        before: Verdict | None,
        seconds: float,
        rounds: int | None = None,
        recorded: Recorded | None = None,
    ) -> Settled:
        """Race `field` on `task` for about `seconds`, and at most `rounds` for now, and judge.

        What was `recorded` before an interruption is not measured again. A failing default is a bug of the model and raises.
        """
        import torch

        budget = Budget(seconds, self.device)
        self._by_now = lambda: None
        with torch.inference_mode():
            try:
                ground = self._ground(task)
                if recorded is None or not recorded.races:
                    _ = ground.reference
            except Exception as error:
                if task.seen:
                    raise
                why = failure(error, "the default fails at a size that it was not called with")
                return self.leave_out(task, field, why.detail)
            journal = self.journal.begin(
                task.problem.key, field.offered, (*field.unavailable, *field.rejected), recorded
            )
            lineup = lineup_of(field, self.rng, journal)
            restored = restore(lineup, field, task.spec, recorded) if recorded is not None else Restored()
            limit = self._limit(restored, rounds)
            if not restored.entered:
                self._entrance.enter(lineup, ground, budget)
            elif restored.race is None or restored.race.rounds < limit:
                self._entrance.line_up(lineup, ground)
            inner = restored.inner or calibrate(lineup.contenders[0], self.device).inner
            spent = recorded.seconds if recorded is not None else 0.0

            def make(result: RaceResult) -> Standing:
                return Standing(task, field, known, before, ground.input_bytes, lineup, result, inner, spent)

            standing = self._raced(make, lineup, inner, budget, budget.over, restored.race, limit)
        return self._settled(standing, budget)

    def go_on(self, standing: Standing, seconds: float, over: Callable[[], bool] = lambda: False) -> Settled:
        """Go on for about `seconds`, and judge anew: first with tactics that were not reached, then with the race.

        Its samples count on, unless a tactic enters late or leaves: then the race begins again among those that are left
        and the newcomers. `over()` ends it at once.
        """
        import torch

        budget = Budget(seconds, self.device)
        self._by_now = lambda: None
        lineup, result = standing.lineup, standing.result
        left = {entry.name for entry in result.survivors}
        lineup.admitted = {name: candidate for name, candidate in lineup.admitted.items() if name in left}
        rounds = 0

        def stop() -> bool:
            nonlocal rounds
            rounds += 1
            return over() or (budget.over() and rounds >= SLICE_ROUNDS)

        def make(result: RaceResult) -> Standing:
            standing.result = result
            return standing

        with torch.inference_mode():
            if lineup.unreached:
                self.park(standing)
                self._entrance.enter(lineup, self._ground(standing.task), budget)
            elif not lineup.contenders:
                self._entrance.line_up(lineup, self._ground(standing.task))
            self._raced(make, lineup, standing.inner, budget, stop, result, self.effort.max_rounds)
        return self._settled(standing, budget)

    def by_now(self) -> Settled | None:
        """What may be said, without a call, of the race that was interrupted; None where that is nothing new."""
        return self._by_now()

    def park(self, standing: Standing) -> None:
        """Let go of what a race holds; where it goes on, its tactics are bound anew."""
        for entry in standing.result.entries:
            entry.candidate = at_rest(entry.candidate)
        standing.lineup.contenders.clear()
        self.held.unpin(standing.key)

    def leave_out(self, task: Task, field: Field, why: str = "the budget was spent") -> Settled:
        """A problem that was not measured."""
        return Settled(left_out(task, field, self.run, why))

    def _ground(self, task: Task) -> Ground:
        layers = replicas(task.family.layers)
        inputs = task.inputs(task.sizes, self.rng, layers)
        return Ground(task, layers, inputs, self.device, self.rng)

    def _limit(self, restored: Restored, rounds: int | None) -> int:
        """The rounds of a race for now; one that was cut short is ended in any case."""
        limit = min(rounds or self.effort.max_rounds, self.effort.max_rounds)
        race = restored.race
        if race is not None and any(len(entry.samples) > race.rounds for entry in (race.default, *race.survivors)):
            return max(limit, race.rounds + 1)
        return limit

    def _raced(
        self,
        make: Callable[[RaceResult], Standing],
        lineup: Lineup,
        inner: int,
        budget: Budget,
        stop: Callable[[], bool],
        former: RaceResult | None,
        rounds: int,
    ) -> Standing:
        """`make` of the race's result. It goes on from `former` where just its survivors are admitted, else it begins again."""
        number = lineup.journal.number
        racing = {*lineup.admitted, DEFAULT.name}
        same = former is not None and {former.default.name, *(entry.name for entry in former.survivors)} == racing

        def standing(result: RaceResult) -> Standing:
            made = make(result)
            if former is not None and lineup.journal.number != number:
                made.begin_again(former)
            return made

        def by_now() -> Settled | None:
            so_far = lineup.journal.so_far(DEFAULT.name)
            again = lineup.journal.number != number
            if so_far is None or (former is not None and not again and so_far.rounds == former.rounds):
                return None
            bound = [entry.candidate for entry in so_far.entries]
            made = standing(
                race(
                    bound,
                    DEFAULT.name,
                    self.device,
                    inner=inner,
                    rng=self.rng,
                    max_rounds=so_far.rounds,  # all that it does is to reckon what choosing now may cost
                    earlier=so_far,
                )
            )
            made.spent += budget.spent()
            made.interrupted = True
            return Settled(judge(made, self.run), made)

        self._by_now = by_now
        result = race_lineup(
            lineup,
            self.device,
            self.rng,
            self.effort,
            inner=inner,
            rounds=rounds,
            stop=stop,
            earlier=former if same else None,
        )
        for entry in former.entries if former is not None else ():
            entry.candidate = at_rest(entry.candidate)  # the new result has entries of its own
        return standing(result)

    def _settled(self, standing: Standing, budget: Budget) -> Settled:
        """The verdict by now. A race that may go on keeps the weights of those that are left; another keeps nothing."""
        lineup, result = standing.lineup, standing.result
        standing.spent += budget.spent()
        standing.cut = result.stopped == "time" or (
            result.stopped == "rounds" and result.rounds < self.effort.max_rounds
        )
        verdict = judge(standing, self.run)
        left = {result.default.name, *(entry.name for entry in result.survivors)}
        lineup.contenders = [candidate for candidate in lineup.contenders if candidate.name in left]
        for entry in result.entries:
            if entry.name not in left:
                entry.candidate = at_rest(entry.candidate)
        unsure = verdict.status == "unresolved" or (
            verdict.status == "likely" and result.loss > self.effort.accepted_loss
        )
        if unsure and (lineup.unreached or (standing.cut and result.rounds < self.effort.max_rounds)):
            if lineup.narrowed:  # fewer tactics are left: where it goes on, there may be room for more layers
                self.park(standing)
            else:
                layouts = {candidate.layout for candidate in lineup.contenders}
                let_go = functools.partial(self.park, standing)
                self.held.pin(standing.key, lineup.rotation, layouts, standing.inputs, let_go)
            return Settled(verdict, standing)
        self.park(standing)
        return Settled(verdict)
