"""Which tactic serves a problem, and why: a pin goes before the cache, and the cache before the default. For every op alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from tunebook.book._restarts import measured
from tunebook.records import DEFAULT, Plan, Problem, Record, Tactic, Verdict
from tunebook.store import Pins

#: The rule, in the words in which `tunebook show` and `tunebook pins` print it.
RULE = "a pin goes before the cache, and the cache before the default"
#: Why the op does not offer a tactic for a problem today; None where it does, and where nobody can tell.
Offers = Callable[[Problem, Tactic], str | None]


class Serving(Record, frozen=True, kw_only=True, omit_defaults=False):
    """What serves a problem: by a pin, by the cache (its plan for a model, else its verdict), or the default by default.

    `model` names the one that a plan is for; a problem that several plans hold is served by each in its own way. `refused` is
    the pin that would serve, were it offered.
    """

    problem: str
    tactic: str
    by: Literal["pin", "cache", "default"]
    why: str
    model: str = ""
    refused: str = ""


def serving(
    verdicts: Mapping[str, Verdict], plans: Iterable[Plan], pins: Pins, offers: Offers = lambda problem, tactic: None
) -> list[Serving]:
    """What serves every problem that the cache knows, or that has a pin of its own, in the order of the keys."""
    plans = list(plans)
    found: list[Serving] = []
    for key in sorted({*verdicts, *pins.problems}):
        problem = Problem.parse(key)
        pin, refused = pins.of(problem), ""
        if pin is not None:
            target, tactic = pin
            why = offers(problem, tactic)
            if why is None:
                found.append(Serving(problem=key, tactic=tactic.name, by="pin", why=f"pin {target}"))
                continue
            refused = f"pin {target} = {tactic.name}: {why}"
        found += _without_pin(key, verdicts.get(key), plans, refused)
    return found


def _without_pin(key: str, verdict: Verdict | None, plans: Iterable[Plan], refused: str) -> list[Serving]:
    found = {_by_plan(key, plan, refused) for plan in plans if key in plan.tactics}
    if found:
        return sorted(found, key=lambda one: (one.model, one.tactic, one.why))
    if verdict is None or not measured(verdict):
        why = "nothing is known of it" if verdict is None else verdict.note
        return [Serving(problem=key, tactic=DEFAULT.name, by="default", why=why, refused=refused)]
    return [Serving(problem=key, tactic=verdict.winner, by="cache", why="its verdict", refused=refused)]


def _by_plan(key: str, plan: Plan, refused: str) -> Serving:
    if not plan.active:
        why = "the plan is slower than the default on the whole model"
        return Serving(problem=key, tactic=DEFAULT.name, by="cache", why=why, model=plan.model, refused=refused)
    given_back = f"; {plan.reverted[key]} makes the model slower" if key in plan.reverted else ""
    why = f"the plan{given_back}"
    return Serving(problem=key, tactic=plan.tactics[key], by="cache", why=why, model=plan.model, refused=refused)
