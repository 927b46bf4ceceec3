"""What a session can answer without measuring: by pins, by the run that is resumed, by the cache."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tunebook.ops import OpSpec
from tunebook.records import Environment, Member, Plan, Problem, Verdict
from tunebook.store import CacheContents, Location, Miss, Pins, Policy, pins_path, read_cache, read_pins
from tunebook.store.search_path import Shipped, origin_of, over_shipped, read_search_path
from tunebook.tuner._admissible import foreign
from tunebook.tuner._entrants import Answer, Selection, answer, available_runners
from tunebook.tuner._pinned import Pinned
from tunebook.tuner._resumed import Resumed

logger = logging.getLogger("tunebook.tuner")


class Recall:
    """What is known under one policy, and what of it serves today. FRESH knows what the run that is resumed holds, no more.

    `together` says whether the ranks of a group tune together: only then are ops served whose calls communicate.
    """

    def __init__(
        self,
        policy: Policy,
        location: Location,
        environment: Environment,
        selection: Selection,
        resumed: Resumed | None,
        *,
        continuing: bool,
    ) -> None:
        self.selection = selection
        self.continuing = continuing
        self.together = False
        self.own: CacheContents | None = None  #: the user's own cache
        self.shipped: tuple[Shipped, ...] = ()
        self.contents: CacheContents | None = None  #: the own cache over what was shipped
        self._resumed = resumed
        self._dims: dict[str, tuple[str, ...]] = {}
        pins = Pins(path=pins_path(location.cache))
        if policy is not Policy.FRESH:
            self.own = read_cache(location.cache, environment)
            self.shipped = read_search_path(environment)
            self.contents = over_shipped(self.own, self.shipped)
            pins = read_pins(pins.path)
        self.pinned = Pinned(pins, logger.warning)

    @property
    def misses(self) -> tuple[Miss, ...]:
        """What of the cache, the search path and the pins cannot be served; bad entries are known once they were looked up."""
        shipped = (miss for one in self.shipped for miss in one.misses)
        return (*(self.contents.misses if self.contents else ()), *shipped, *self.pinned.pins.misses)

    def serving(self, ops: Mapping[str, tuple[OpSpec, str]]) -> tuple[dict[str, tuple[Member, ...]], list[str]]:
        """What can be answered without a call: the members that may serve, by problem; each miss in words (logged too).

        A pin for an op or a bucket serves the problems that the cache knows of.

        `ops` gives each op with the version of its default.
        """
        found: dict[str, tuple[Member, ...]] = {}
        misses: list[str] = []
        for key in dict.fromkeys((*(self.contents.verdicts if self.contents else ()), *self.pinned.pins.problems)):
            spec, default_version = ops.get(Problem.parse(key).op, (None, ""))
            known = self.known(key, spec, default_version) if spec else None
            misses += [f"{key}: {note}" for note in (known.notes if known else ("the op is not declared here",))]
            if known is not None and known.members:
                found[key] = known.members
        for note in misses:
            logger.info("cache miss: %s", note)
        return found, misses

    def plan_of(self, fingerprint: str) -> Plan | None:
        """What the cache remembers of a model's plan, never under FRESH; a verified one of the run that is resumed beats it."""
        cached = self.contents.plans.get(fingerprint) if self.contents else None
        mine = self._resumed.plans.get(fingerprint) if self._resumed is not None else None
        return mine if mine is not None and (mine.verified or cached is None) else cached

    def verdict_of(self, key: str) -> Verdict | None:
        """What a pin that decided the problem stands for, else what the cache holds about it."""
        return self.pinned.verdicts.get(key) or self._cached(key)

    def _cached(self, key: str) -> Verdict | None:
        """What the run that is resumed has settled, else what the cache holds."""
        mine = self._resumed.verdicts.get(key) if self._resumed is not None else None
        return mine or (self.contents.verdicts.get(key) if self.contents else None)

    def origins(self, verdicts: Mapping[str, Verdict]) -> dict[str, Path]:
        """Of these verdicts, those that come from the search path, each with the file that holds it."""
        if self.own is None:
            return {}
        found = {key: origin_of(verdict, self.own, self.shipped) for key, verdict in verdicts.items()}
        return {key: one.path for key, one in found.items() if one is not None}

    def known(self, key: str, spec: OpSpec, default_version: str) -> Answer | None:
        """What a pin, else the cache, answers for a problem, or None where neither says anything about it.

        A pin that the op offers is the whole answer: nothing is measured for it.
        """
        if spec.communicates and not self.together:
            return Answer((), notes=("its calls communicate: they are tuned and served with autotune(group=…) alone",))
        verdict, problem = self._cached(key), Problem.parse(key)
        if foreign(problem, spec) is None and not self._alike(problem):
            return Answer((), notes=("its dimensions are not those of its family",))
        pinned = self.pinned.answer(problem, spec, default_version, verdict)
        if verdict is None or (pinned is not None and pinned.pin):
            return pinned
        known = answer(verdict, spec, default_version, self.selection)
        if pinned is not None:
            known = replace(known, notes=(*pinned.notes, *known.notes))
        if self._resumed is not None and self._resumed.unfinished(key):
            changed = dict.fromkeys((*known.changed, *self._resumed.raced(key)))
            return replace(known, changed=tuple(name for name in changed if name in available_runners(spec)))
        settled = self._resumed is not None and self._resumed.settles(key)
        if self.continuing and verdict.status == "unresolved" and not settled:
            every = tuple(name for name in available_runners(spec) if self.selection.takes_runner(name))
            return replace(known, changed=every, notes=(*known.notes, "unresolved: the tuning goes on"))
        return known

    def _alike(self, problem: Problem) -> bool:
        """Whether a problem has the dimensions of those of its family that were asked for before: sizes are compared."""
        names = tuple(dim.name for dim in problem.dims)
        return self._dims.setdefault(problem.family, names) == names

    def unheld(self, verdicts: Mapping[str, Verdict]) -> dict[str, Verdict]:
        """Those of `verdicts` that are neither a pin's nor in the cache as they are."""
        cached = self.contents.verdicts if self.contents else {}
        return {key: v for key, v in verdicts.items() if v not in (self.pinned.verdicts.get(key), cached.get(key))}

    def holds(self, plan: Plan) -> bool:
        """Whether the cache has this very plan."""
        return self.contents is not None and self.contents.plans.get(plan.fingerprint) == plan
