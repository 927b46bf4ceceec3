"""What a cache knows of the problems that were called: which are tuned, what a call takes, what the dummy runs met."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from tunebook.book._place import place_of
from tunebook.book._problem_coverage import Basis, ProblemCoverage
from tunebook.envs import envs
from tunebook.errors import StoreError
from tunebook.records import Plan, Problem, Served, Verdict
from tunebook.records._base import LONGEST_S
from tunebook.store import CacheContents, Location, read_cache
from tunebook.store.search_path import over_shipped, read_search_path


class Known:
    """The verdicts and plans that calls are held against.

    `cache` is where they come from, empty where nothing is known of this machine; `misses` is what of it could not be read.
    """

    def __init__(
        self,
        cache: str = "",
        verdicts: Mapping[str, Verdict] | None = None,
        plans: Iterable[Plan] = (),
        misses: tuple[str, ...] = (),
    ) -> None:
        self.cache, self.misses = cache, misses
        self._verdicts = dict(verdicts or {})
        self._times: dict[tuple[str, str], dict[int, float]] = {}  #: the default's seconds by size, by family
        for verdict in self._verdicts.values():
            if verdict.seconds > 0:
                problem = Problem.parse(verdict.problem)
                times = self._times.setdefault((problem.family, problem.policy), {})
                times[_size(problem)] = _default_s(verdict)
        self._plans: dict[str, list[Plan]] = {}
        for plan in plans:
            for family in {family for families in plan.modules.values() for family in families}:
                self._plans.setdefault(family, []).append(plan)

    @classmethod
    def of(cls, cache: Path | str | None) -> Known:
        """What a cache, or a run, holds, and what was shipped; by default this machine's. What is not there knows nothing."""
        try:
            path = place_of(None if cache is None else Path(cache)).cache
        except StoreError:
            if cache is not None or not envs.TUNEBOOK_CACHE_PATH.get():
                return cls()
            from tunebook.devices import device_of  # loads torch

            path = Location.of(device_of("cpu").environment()).cache  # nothing of the user's own, and something shipped
        contents = _with_shipped(read_cache(path, None))
        verdicts, plans = dict(contents.verdicts), tuple(contents.plans.values())
        misses = tuple(str(miss) for miss in contents.misses if miss.kind != "absent")
        return cls(str(path), verdicts, plans, misses)

    def judged(self, model: str, key: str, served: Served) -> ProblemCoverage:
        """What is known of a problem, beside its calls.

        Calls that were counted as tuned are not where the verdict was left out unmeasured (the default served), nor where a
        plan for one result whatever the batch lends a tactic to a size that nobody measured.
        """
        problem, verdict = Problem.parse(key), self._verdicts.get(key)
        plans = self._plans.get(problem.family, [])
        left_out = verdict is not None and not verdict.rounds
        tuned, bucket, default = served.tuned, served.bucket, served.default
        if left_out:
            tuned, default = 0, default + tuned
        elif verdict is None and any(plan.batch_invariant for plan in plans):
            tuned, bucket = 0, bucket + tuned
        each, basis = self._default_seconds(problem, verdict)
        winner = verdict.seconds if verdict is not None and verdict.seconds > 0 and not left_out else each
        seconds = untuned = None
        if each is not None and winner is not None:
            untuned = (bucket + default) * each
            seconds = tuned * winner + served.pinned * each + untuned
        return ProblemCoverage(
            problem=key,
            op=problem.op,
            model=model,
            tuned_as=plans[0].model if plans else "",
            pinned=served.pinned,
            tuned=tuned,
            bucket=bucket,
            default=default,
            seconds=seconds,
            untuned_seconds=untuned,
            basis=basis,
            covered=verdict is not None and not left_out,
            left_out=left_out,
            met=any(key in phase.calls for plan in plans for phase in plan.profile) if plans else None,
            decode=served.decode,
            prefill=served.prefill,
        )

    def _default_seconds(self, problem: Problem, verdict: Verdict | None) -> tuple[float | None, Basis]:
        """The default's seconds a call, and what tells them: the problem's own verdict, else the nearest of its family."""
        if verdict is not None and verdict.seconds > 0:
            return _default_s(verdict), "verdict"
        times = self._times.get((problem.family, problem.policy))
        return (estimated(times, _size(problem)), "nearest") if times else (None, "unknown")


def estimated(times: Mapping[int, float], size: int) -> float:
    """Seconds for a size, of those by size that are known, at least one.

    Between two sizes logarithms are interpolated. Below all of them the smallest one's stand; beyond, they go on growing as
    between the two largest, by no more than the size does, and just so where one alone is known.
    """
    known = sorted(times)
    least, most = known[0], known[-1]
    if size <= least:
        return times[least]
    if size > most:
        slope = _slope(times, known[-2], most) if len(known) > 1 else 1.0
        return _grown(times, most, size, min(1.0, max(0.0, slope)))
    place = bisect.bisect_left(known, size)
    return _grown(times, known[place - 1], size, _slope(times, known[place - 1], known[place]))


def _grown(times: Mapping[int, float], known: int, size: int, slope: float) -> float:
    """Logarithms throughout: sizes out of a file may be larger than any float."""
    log = math.log(times[known]) + slope * (math.log(size) - math.log(known))
    return math.exp(min(log, math.log(LONGEST_S)))


def _slope(times: Mapping[int, float], one: int, other: int) -> float:
    return (math.log(times[other]) - math.log(times[one])) / (math.log(other) - math.log(one))


def _with_shipped(own: CacheContents) -> CacheContents:
    """The cache over those of the search path."""
    if not envs.TUNEBOOK_CACHE_PATH.get():
        return own
    environment = own.environment
    if environment is None:
        from tunebook.devices import device_of

        environment = device_of("cpu").environment()
    return over_shipped(own, read_search_path(environment, loud=False))


def _default_s(verdict: Verdict) -> float:
    return min(LONGEST_S, verdict.seconds * verdict.speedup)


def _size(problem: Problem) -> int:
    return max(1, math.prod(dim.size for dim in problem.dims))
