"""The best single tactic: what an op would be served with if it could not have another tactic for every problem."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunebook.engine import ModelRunner
from tunebook.plan import Serving, Step
from tunebook.records import DEFAULT, Problem, Tactic, Verdict

logger = logging.getLogger("tunebook.benchmarks")

#: So many winners of an op are tried, those of the costliest problems first.
MOST = 6
#: Measured steps of each phase; the least time counts, since what disturbs a step only adds to it.
RUNS = 2


def candidates(verdicts: Mapping[str, Verdict], weights: Mapping[str, float]) -> dict[str, list[str]]:
    """By op the tactics that win its costliest problems. `weights` are the seconds that the default takes of each problem."""
    worth: dict[str, dict[str, float]] = {}
    for key, verdict in verdicts.items():
        of_op = worth.setdefault(Problem.parse(key).op, {})
        of_op[verdict.winner] = of_op.get(verdict.winner, 0.0) + weights.get(key, 0.0)
    return {op: sorted(names, key=lambda name: (-names[name], name))[:MOST] for op, names in worth.items()}


def best_fixed(runner: ModelRunner, steps: Sequence[Step], tried: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """By problem the one tactic of its op that takes the least of all steps, each step counting alike.

    The candidates and the default are measured inside the model, op after op, the costliest first; what was found for the
    ops before serves meanwhile. A candidate that fails anywhere is none.
    """
    base = _measure(runner, steps, {})
    problems = {key for step in base.values() for key in step.problems}
    keys = {op: [key for key in problems if Problem.parse(key).op == op] for op in tried}
    found: dict[str, Tactic] = {}
    for op in sorted(tried, key=lambda op: -_cost(base, base, keys[op])):
        bindings = [binding for binding in runner.scope.bindings if binding.spec.name == op]
        costs: dict[Tactic, float] = {}
        for tactic in dict.fromkeys((DEFAULT, *(Tactic.parse(name) for name in tried[op]))):
            try:
                for binding in bindings:
                    binding.bound(tactic)
                serves = {**found, **dict.fromkeys(keys[op], tactic)}
                costs[tactic] = _cost(_measure(runner, steps, serves), base, keys[op])
            except Exception as error:  # noqa: BLE001 - a runner's own code, on shapes that it may not be made for
                logger.warning("%s cannot serve every %s: %s", tactic.name, op, error)
            for binding in bindings:
                binding.prepared.keep_only(())
        found |= dict.fromkeys(keys[op], min(costs, key=lambda tactic: (costs[tactic], tactic.name)))
    return {key: tactic.name for key, tactic in found.items()}


@dataclass(frozen=True)
class _Taken:
    """Seconds of one step, and of its problems."""

    seconds: float
    problems: dict[str, float]


def _measure(runner: ModelRunner, steps: Sequence[Step], tactics: Mapping[str, Tactic]) -> dict[str, _Taken]:
    """What each step takes, by its name, with these tactics and otherwise the default."""
    serving = Serving(runner.scope, runner.device)
    found: dict[str, _Taken] = {}
    for step in steps:
        serving.run(step, tactics)
        runs = [_Taken(serving.run(step, tactics, timed=True), dict(serving.seconds)) for _ in range(RUNS)]
        least = {key: min(run.problems[key] for run in runs) for key in runs[0].problems}
        found[step.name] = _Taken(min(run.seconds for run in runs), least)
    return found


def _cost(taken: Mapping[str, _Taken], base: Mapping[str, _Taken], keys: Sequence[str]) -> float:
    """The share of the default's steps that these problems take, summed over the steps."""
    return sum(sum(step.problems.get(key, 0.0) for key in keys) / base[name].seconds for name, step in taken.items())
