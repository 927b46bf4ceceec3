"""From what a race showed to the verdict that is kept, and from a kept verdict to what may serve today."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunebook.integrations.flashinfer._meter import offered_of
from tunebook.integrations.flashinfer._names import FALLBACK, value_of
from tunebook.integrations.flashinfer._package import Package
from tunebook.integrations.flashinfer._problems import Found, spaces
from tunebook.integrations.flashinfer._race import Raced
from tunebook.measure import choose
from tunebook.records import DEFAULT, Member, Tactic, Verdict

#: A verdict holds at most so many rejections; the run file has all.
MAX_REJECTED = 32


def verdict_of(package: Package, one: Found, raced: Raced, incumbent: str | None, run: str, cut: bool) -> Verdict:
    """The verdict on a problem; one that was not raced is unresolved, and its default serves."""
    offered = offered_of(package, one, raced.entrants)
    space = len(raced.entrants)
    rejected = tuple(raced.rejected[:MAX_REJECTED])
    if raced.result is None:
        return Verdict(
            problem=one.key,
            winner=DEFAULT.name,
            status="unresolved",
            speedup=1.0,
            low=1.0,
            high=1.0,
            seconds=0.0,
            frontier=(Member(tactic=DEFAULT.name, ratio=1.0, low=1.0, high=1.0),),
            offered=offered,
            rejected=rejected,
            run=run,
            measured=raced.seconds,
            note=f"left out: {raced.why}",
            space=space,
        )
    choice = choose(raced.result, lambda name: (Tactic.parse(name).runner, ""), incumbent, raced.beside)
    seen = len(raced.result.entries) + len(raced.beside) + len(raced.rejected)
    notes = (
        raced.silent,
        f"outputs were not compared: {raced.unchecked}" if raced.unchecked else "",
        f"saw {seen:,} of {space:,} tactics" if seen < space else "",
        "its time was up" if cut else "",
    )
    return Verdict(
        problem=one.key,
        winner=choice.winner,
        status=choice.status if seen >= space else "unresolved",
        speedup=choice.speedup.value,
        low=choice.speedup.low,
        high=choice.speedup.high,
        seconds=choice.seconds,
        frontier=choice.frontier,
        offered=offered,
        ties=choice.ties,
        rejected=rejected,
        run=run,
        rounds=raced.rounds,
        measured=raced.seconds,
        note=", ".join(note for note in notes if note),
        loss=choice.loss,
        space=space,
        seen=min(seen, space),
    )


@dataclass(frozen=True)
class Serving:
    """What may serve today of a kept verdict: a runner's place and a tactic, or nothing; and why better ones may not.

    `sound`: nothing but runners that the op was not asked with now stands between the winner and what serves.
    """

    member: tuple[int, Any] | None
    why: tuple[str, ...]
    sound: bool


def may_serve(package: Package, one: Found, verdict: Verdict) -> Serving:
    """The best member of a kept verdict's frontier that may serve today."""
    why: list[str] = []
    sound = True
    tensors: list[Any] = []
    for member in verdict.frontier:
        found = _member(package, one, verdict, member.tactic, tensors)
        if not isinstance(found, str):
            return Serving(found, tuple(why), sound)
        sound &= _is_absent(one, Tactic.parse(member.tactic))
        why.append(f"{member.tactic}: {found}")
    return Serving(None, tuple(why), sound)


def all_that_may_serve(package: Package, one: Found, verdict: Verdict) -> dict[str, tuple[int, Any]]:
    """Each member of a verdict's frontier that may serve today, by its tactic, the best first; the default last."""
    tensors: list[Any] = []
    found = {
        member.tactic: able
        for member in verdict.frontier
        if not isinstance(able := _member(package, one, verdict, member.tactic, tensors), str)
    }
    return {**found, DEFAULT.name: (0, FALLBACK)}


def _is_absent(one: Found, tactic: Tactic) -> bool:
    return tactic != DEFAULT and tactic.runner not in one.names


def _member(package: Package, one: Found, verdict: Verdict, name: str, tensors: list[Any]) -> tuple[int, Any] | str:
    """The member if it may serve, else why not. `tensors` are made when first needed."""
    tactic = Tactic.parse(name)
    if tactic == DEFAULT:
        return 0, FALLBACK
    if _is_absent(one, tactic):
        return f"there is no runner {tactic.runner} today"
    tuned = verdict.offered.get(tactic.runner)
    if tuned is None or tuned.version != package.stamp:
        return f"tuned with FlashInfer {tuned.version if tuned else 'unknown'}, this is {package.stamp}"
    place = one.names.index(tactic.runner)
    try:
        value = value_of(tactic, package.module._json_to_tactic)
    except ValueError as error:
        return str(error)
    runner = one.runners[place]
    if not package.tuner._blocklist.filter(one.op, runner, [value]):
        return "it is on FlashInfer's blocklist"
    hook = getattr(runner, "validate_tactic", None)
    try:
        with one.as_called():
            if not tensors:
                tensors += one.tensors(package)
            if hook is not None:
                return (place, value) if hook(tensors, value) else "its runner says that it is not valid here"
            offered = spaces(package, one, tensors, [place])[place]
    except Exception as error:  # noqa: BLE001 - a runner's own code; what it raises is data
        return f"its runner fails to validate it: {type(error).__name__}: {error}"
    if isinstance(offered, Exception):
        return f"its runner fails to say what it offers: {offered}"
    plain = package.module._tactic_to_json
    return (place, value) if plain(value) in map(plain, offered) else "its runner does not offer it today"
