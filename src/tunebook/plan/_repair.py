"""Repairing a plan that loses: ablation names the problems that cost the model time, and the default serves them instead."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from tunebook.dispatch import Scope
from tunebook.measure import Budget, Clock
from tunebook.plan._lend import distance
from tunebook.plan._serving import Serving
from tunebook.plan._verify import MIN_ROUNDS, OVERDRAFT, Proof, Step, verify
from tunebook.records import DEFAULT, Effect, Overall, Phase, Problem, Tactic
from tunebook.stats import ratio_interval

logger = logging.getLogger("tunebook.plan")

#: A plan is changed and compared again at most so many times; the last time, all of the losing phases is reverted.
MAX_REPAIRS = 3
#: What the same code gains over itself.
UNCHANGED = Overall(speedup=1.0, speedup_low=1.0, speedup_high=1.0)
#: So many problems are taken out one by one in an ablation, those that lost most by themselves first.
MAX_SUSPECTS = 6

Progress = Callable[[int, int, str], None]
#: Gives problems of a plan back: from its tactics and these problems to the tactics that can serve instead.
GiveBack = Callable[[Mapping[str, Tactic], Collection[str]], Mapping[str, Tactic]]


def to_default(tactics: Mapping[str, Tactic], keys: Collection[str]) -> Mapping[str, Tactic]:
    """The default serves these problems, the others stay."""
    return {**tactics, **dict.fromkeys(keys, DEFAULT)}


@dataclass(frozen=True)
class Repaired:
    """What is served now, which problems were given back, and the proof of just that, from rounds of its own."""

    tactics: dict[str, Tactic]
    reverted: frozenset[str]
    proof: Proof


def loses(proof: Proof) -> bool:
    """Whether a plan is to be repaired: slower over all, or slower in a phase and not faster over all."""
    phases, overall = proof
    if overall.outcome == "no difference":
        return any(phase.outcome == "slower" for phase in phases)
    return overall.outcome == "slower"


def seconds_a_round(proof: Proof) -> float:
    """What a default and a tuned step of every phase take together."""
    return sum(phase.default_ms + phase.tuned_ms for phase in proof[0]) / 1e3


def repair(
    steps: Sequence[Step],
    scope: Scope,
    serving: Serving,
    tactics: Mapping[str, Tactic],
    proof: Proof,
    effects: Sequence[Effect],
    clock: Clock,
    budget: Budget,
    rng: random.Random,
    progress: Progress | None = None,
    give_back: GiveBack = to_default,
) -> Repaired:
    """Give problems back to the default until the plan does not lose any more, or neither time nor problems are left.

    Suspects are the tuned problems of the losing phases. An ablation takes them out one by one, and reverts those without
    which a losing phase is shown to be faster. What then serves is compared with the default anew: rounds that chose a plan
    prove nothing about it. Where an ablation finds nothing or does not fit the budget, what lost by itself (`effects`) is
    reverted; at last everything in the losing phases. A comparison begins only where six rounds fit half as much again as
    the budget. The scope is left with the tactics that are returned.

    `give_back` says what serves instead, which need not be the default: where original weights are to be released, it takes
    memory.
    """
    now = Repaired(dict(tactics), frozenset(), proof)
    for attempt in range(MAX_REPAIRS):
        compare_s = (MIN_ROUNDS + 1) * seconds_a_round(now.proof)
        left = OVERDRAFT * budget.seconds - budget.spent() - compare_s
        if not loses(now.proof) or left < 0:
            break
        suspects = _suspects(now, effects)
        if not suspects:
            break
        last = attempt == MAX_REPAIRS - 1 or left < compare_s
        met = {(effect.phase, effect.problem) for effect in effects}
        keys = set(suspects) if last else _culprits(steps, serving, now, suspects, met, left, rng, progress)
        keys |= _neighbours(keys, now.tactics, serving.met)
        logger.info("the plan loses on the whole model; given back: %s", ", ".join(sorted(keys)))
        changed = dict(give_back(now.tactics, keys))
        scope.install(changed, replace=True)
        again: Proof | None = _nothing(now.proof)
        if any(tactic != DEFAULT for tactic in changed.values()):
            again = verify(steps, scope, clock, budget, rng, progress)
        if again is None:  # the machine has become too busy: what was proven last stands
            break
        now = Repaired(changed, now.reverted | keys, again)
    scope.install(now.tactics, replace=True)
    return now


def _losing(proof: Proof) -> set[str]:
    """The phases that are shown to be slower; where none is by itself, those that are slower by their median."""
    shown = {phase.name for phase in proof[0] if phase.outcome == "slower"}
    return shown or {phase.name for phase in proof[0] if phase.speedup < 1}


def _suspects(now: Repaired, effects: Sequence[Effect]) -> dict[str, float]:
    """The tuned problems of the losing phases with what they save there, as a share of the step; the worst first."""
    losing, step_ms = _losing(now.proof), {phase.name: phase.default_ms for phase in now.proof[0]}
    found: dict[str, float] = {}
    for effect in effects:
        if effect.phase in losing and now.tactics.get(effect.problem, DEFAULT) != DEFAULT:
            share = effect.measured_ms / step_ms[effect.phase]
            found[effect.problem] = min(share, found.get(effect.problem, math.inf))
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))


def _culprits(
    steps: Sequence[Step],
    serving: Serving,
    now: Repaired,
    suspects: Mapping[str, float],
    met: Collection[tuple[str, str]],
    left: float,
    rng: random.Random,
    progress: Progress | None,
) -> set[str]:
    """The suspects without which the model is faster, as far as `left` seconds let them be tried."""
    losing = _losing(now.proof)
    lost = {key for key, share in suspects.items() if share < 0}
    a_plan = MIN_ROUNDS * sum(max(p.default_ms, p.tuned_ms) for p in now.proof[0] if p.name in losing) / 1e3
    others = 1 + (len(lost) > 1)  # the plan as it is; and all that lost by themselves, together
    count = min(len(suspects), MAX_SUSPECTS, left / max(a_plan, 1e-9) - others)
    if count >= 1:
        alone = [frozenset((key,)) for key in list(suspects)[: int(count)]]
        together = [frozenset(lost)] if len(lost) > 1 else []
        chosen = [step for step in steps if step.name in losing]
        gains = _ablate(chosen, serving, now.tactics, [*alone, *together], met, rng, progress)
        found = {key for group in alone if gains[group] for key in group}
        if found:
            return found
        if any(gains[group] for group in together):
            return lost
    return lost or set(suspects)


def _ablate(
    steps: Sequence[Step],
    serving: Serving,
    tactics: Mapping[str, Tactic],
    groups: Sequence[frozenset[str]],
    met: Collection[tuple[str, str]],
    rng: random.Random,
    progress: Progress | None,
) -> dict[frozenset[str], bool]:
    """Of each group: whether a step is shown to be faster, and none to be slower, where the default serves it.

    In each round every step is run with the plan as it is and without each group that it meets (`met`: phase and problem),
    in random order. A step that meets nothing of a group is the same code without it, and could acquit it by noise alone.
    """
    plans = [tactics, *({**tactics, **dict.fromkeys(group, DEFAULT)} for group in groups)]
    told = [[0, *(n for n, group in enumerate(groups, 1) if any((s.name, key) in met for key in group))] for s in steps]
    times: list[dict[int, list[float]]] = [{index: [] for index in indices} for indices in told]
    for done in range(MIN_ROUNDS):
        for step, indices, of_step in zip(steps, told, times, strict=True):
            for index in rng.sample(indices, len(indices)):
                of_step[index].append(serving.run(step, plans[index]))
        if progress:
            progress(done + 1, MIN_ROUNDS, "finding what makes the model slower")
    found = {}
    for index, group in enumerate(groups, 1):
        gains = [ratio_interval(of_step[0], of_step[index]) for of_step in times if index in of_step]
        found[group] = any(gain.low > 1 for gain in gains) and not any(gain.high < 1 for gain in gains)
    return found


def _neighbours(keys: Collection[str], tactics: Mapping[str, Tactic], met: Collection[str]) -> set[str]:
    """Buckets that no step runs, where the nearest that one runs is among `keys` with the same tactic.

    Only the race speaks for them, and next to them it was wrong.
    """
    found = set()
    for key, tactic in tactics.items():
        if key in met or tactic == DEFAULT:
            continue
        mine = Problem.parse(key)
        family = [other for other in met if Problem.parse(other).family == mine.family]
        if not family:
            continue
        nearest = min(family, key=lambda other: (distance(mine, Problem.parse(other)), other))
        if nearest in keys and tactics[nearest] == tactic:
            found.add(key)
    return found


def unchanged(phase: str, batch: int, tokens: int, milliseconds: float, rounds: int) -> Phase:
    """A phase in which nothing but defaults serves: the same code, so what a step of it took stands on both sides."""
    return Phase(
        phase=phase,
        batch=batch,
        tokens=tokens,
        default_ms=milliseconds,
        tuned_ms=milliseconds,
        speedup=1.0,
        speedup_low=1.0,
        speedup_high=1.0,
        rounds=rounds,
    )


def _nothing(proof: Proof) -> Proof:
    """The proof of a plan of nothing but defaults, by what these took."""
    return tuple(unchanged(p.phase, p.batch, p.tokens, p.default_ms, p.rounds) for p in proof[0]), UNCHANGED
