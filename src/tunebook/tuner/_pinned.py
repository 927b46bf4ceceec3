"""Pins in a session: the tactic that a user has chosen for a problem answers it, whatever was measured."""

from __future__ import annotations

from collections.abc import Callable

from tunebook.ops import OpSpec
from tunebook.records import DEFAULT, Member, Offered, Problem, Tactic, Verdict
from tunebook.stats import Interval
from tunebook.store import Pins
from tunebook.store._text import one_line
from tunebook.tuner._admissible import foreign, incredible, not_offered
from tunebook.tuner._entrants import Answer, available_runners

#: The note of a verdict that a pin stands behind.
PINNED = "pinned"


class Pinned:
    """What the pins of a session answer. `verdicts` are what a plan is told of the problems that they decided so far."""

    def __init__(self, pins: Pins, warn: Callable[[str], None]) -> None:
        """`warn` is told, once each, of the pins that the op does not offer."""
        self.pins = pins
        self.verdicts: dict[str, Verdict] = {}
        self._warn = warn
        self._said: set[str] = set()

    def answer(self, problem: Problem, spec: OpSpec, default_version: str, known: Verdict | None) -> Answer | None:
        """The pinned tactic alone; an answer without any, and a note, where the op does not offer it; None without a pin."""
        pin = self.pins.of(problem)
        if pin is None:
            return None
        target, tactic = pin
        runners = available_runners(spec)
        reason = foreign(problem, spec) or not_offered(tactic, problem, spec, runners)
        if reason is not None:
            note = one_line(f"pin {target} = {tactic}: {reason}")
            if note not in self._said:
                self._said.add(note)
                self._warn(f"{self.pins.path}: {note}; the cache and the default serve {problem.key}")
            return Answer((), notes=(note,))
        layout = "" if tactic == DEFAULT else runners[tactic.runner].layout_of(tactic)
        offered = Offered(version=default_version, space="")
        if tactic != DEFAULT:
            offered = runners[tactic.runner].offered
        known = known if known is not None and incredible(known) is None else None
        verdict = self.verdicts[problem.key] = _verdict(problem, tactic, layout, offered, known)
        return Answer(verdict.frontier, pin=target)


def _verdict(problem: Problem, tactic: Tactic, layout: str, offered: Offered, known: Verdict | None) -> Verdict:
    """A verdict whose winner is the pinned tactic, with what is known of it: as fast as the default where nothing is."""
    member = next((m for m in known.frontier if m.tactic == tactic.name), None) if known is not None else None
    speedup, seconds = Interval(1.0, 1.0, 1.0), known.seconds * known.speedup if known is not None else 0.0
    if known is not None and member is not None:
        speedup = Interval(known.speedup / member.ratio, known.low / member.high, known.high / member.low)
        seconds = known.seconds * member.ratio
    return Verdict(
        problem=problem.key,
        winner=tactic.name,
        status=known.status if known is not None and member is not None else "unresolved",
        speedup=speedup.value,
        low=speedup.low,
        high=speedup.high,
        seconds=seconds,
        frontier=(
            Member(
                tactic=tactic.name,
                ratio=1.0,
                low=1.0,
                high=1.0,
                bytes=member.bytes if member is not None else 0,
                layout=layout,
            ),
        ),
        offered={tactic.runner: offered},
        note=PINNED,
    )
