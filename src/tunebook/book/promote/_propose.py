"""A promotion: what it would put into a cache, what it would not and why, and the doing of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from tunebook.book._change import Change
from tunebook.book._declared import declared_ops
from tunebook.book._diff import Diff, diff
from tunebook.book._prune import _being_written
from tunebook.book._restarts import measured
from tunebook.book._source import Source
from tunebook.book.promote._admit import admit
from tunebook.book.promote._plans import Plans, plans_of
from tunebook.devices import device_of
from tunebook.errors import StoreError, UsageError
from tunebook.records import DEFAULT, Environment, Plan, Problem, Verdict
from tunebook.store import Location, Run, read_any
from tunebook.store.promotion import Revision
from tunebook.store.promotion import promote as put_in


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What promoting a run into a cache would do.

    `verdicts` and `plans` go in; `same` are there already; `left` says of every other problem of the run why it stays out.
    `before` are the cache's own verdicts under these problems; `diff` is None where there is no cache yet. `remarks` are what
    else to know before deciding.
    """

    run: Run
    location: Location
    cache: Source | None
    diff: Diff | None
    verdicts: Mapping[str, Verdict]
    plans: Plans
    same: tuple[str, ...]
    left: Mapping[str, str]
    remarks: tuple[str, ...]
    narrowed: str

    @property
    def empty(self) -> bool:
        return not (self.verdicts or self.plans.put or self.plans.taken_out)

    @property
    def before(self) -> dict[str, Verdict]:
        there = self.cache.verdicts if self.cache is not None else {}
        return {key: there[key] for key in self.verdicts if key in there}


def propose(path: Path, cache: Path | None = None, *, only: Sequence[str] = (), only_better: bool = False) -> Proposal:
    """What promoting the run at `path` would do to `cache`, or to the one that it was made beside, else to its environment's.

    `only` these ops; `only_better`: only problems that the diff calls different with an interval above 1, and of those that the
    cache did not measure only where the run's own interval over the default lies above 1. The ops must be declared in this
    process. Raises StoreError for what is no run, for a run that is still being written, that was made on another machine,
    or in another environment than the cache; UsageError for an op that the run does not have.
    """
    run = _run_of(path)
    location = location_of(path, run.header.environment, cache)
    there = _cache_at(location.cache)
    _check_environments(run, there)
    ops = declared_ops()
    _check_ops(only, run)
    mine = {key: verdict for key, verdict in run.verdicts.items() if not only or Problem.parse(key).op in only}
    cached = dict(there.verdicts) if there is not None else {}
    found = None
    if there is not None:
        narrowed = {key: verdict for key, verdict in cached.items() if not only or Problem.parse(key).op in only}
        found = diff(replace(there, verdicts=narrowed), replace(Source.read(path), verdicts=mine))
    fit, left = admit(replace(run, verdicts=mine), ops)
    same = tuple(key for key in mine if key in cached and cached[key] in (mine[key], fit.get(key)))
    put = {key: verdict for key, verdict in fit.items() if key not in same}
    left = {key: why for key, why in left.items() if key not in same}
    if only_better:
        changes = {change.problem: change for change in found.changes} if found is not None else {}
        worse = {key: why for key in put if (why := _no_better(put[key], cached.get(key), changes.get(key)))}
        put = {key: verdict for key, verdict in put.items() if key not in worse}
        left |= worse
    plans = plans_of(run, put, same, cached, there.plans if there is not None else {}, ops)
    return Proposal(
        run=run,
        location=location,
        cache=there,
        diff=found,
        verdicts=put,
        plans=plans,
        same=same,
        left=left,
        remarks=tuple(_remarks(run, plans)),
        narrowed=" ".join([*(f"--op {name}" for name in only), *(["--only-better"] if only_better else [])]),
    )


def promote(proposal: Proposal, now: datetime | None = None) -> Revision:
    """Do it, as `tunebook.store.promotion.promote` says: a promotion is an explicit decision, and replaces."""
    there = proposal.cache
    fingerprints = {*proposal.plans.put, *proposal.plans.taken_out}
    planned: Mapping[str, Plan] = there.plans if there is not None else {}
    return put_in(
        proposal.location,
        there.environment if there is not None else proposal.run.header.environment,
        proposal.verdicts,
        proposal.plans.put,
        tuple(proposal.plans.taken_out),
        seen=proposal.before,
        seen_plans={key: planned[key] for key in fingerprints if key in planned},
        run=str(proposal.run.path.absolute()),
        promoted=(now or datetime.now()).isoformat(timespec="microseconds"),
        narrowed=proposal.narrowed,
    )


def location_of(run: Path, environment: Environment, cache: Path | None) -> Location:
    """`cache` where it is given, else the one that the run lies beside, else that of the run's environment."""
    usual = Location.of(environment)
    if cache is None and run.absolute().parent.name == "runs":
        cache = _beside(run.absolute())
    return usual if cache is None or cache.absolute() == usual.cache else Location.of(environment, cache)


def _beside(run: Path) -> Path | None:
    """The cache, or its shards, that a run lies beside, told by the name; None where there is none.

    Raises UsageError where several could be it.
    """
    folder, stem = run.parent.parent, run.stem.rpartition(".")[0]
    names = {one.name.removesuffix(".d") if one.is_dir() else one.name for one in folder.iterdir()}
    found = sorted(name for name in names if name.rpartition(".")[0] == stem)
    if f"{stem}.json" in found or not found:
        return folder / f"{stem}.json" if found else None
    if len(found) > 1:
        raise UsageError(f"{run}: which of {', '.join(found)} is its cache cannot be told; say --cache")
    return folder / found[0]


def _run_of(path: Path) -> Run:
    found = read_any(path)
    if not isinstance(found, Run):
        raise StoreError(f"{path}: a cache, and what is promoted is a run; `tunebook history` lists them")
    if _being_written(path):
        raise StoreError(f"{path}: another process is still writing this run; wait for it, or end it first")
    return found


def _cache_at(path: Path) -> Source | None:
    """The cache, with its shards; None where there is none yet."""
    if not path.exists() and not path.with_name(f"{path.name}.d").is_dir():
        return None
    found = Source.read(path)
    if found.header is not None:
        raise StoreError(f"{path}: a run, and what is promoted goes into a cache; choose another one with --cache")
    return found


def _check_environments(run: Run, cache: Source | None) -> None:
    """Raise StoreError, field by field, where the run is of another environment than the cache, or of another machine."""
    mine = run.header.environment
    if cache is not None and (differences := mine.differences(cache.environment)):
        raise StoreError(f"{run.path} and {cache.path} are of different environments: {'; '.join(differences)}")
    here = device_of("cuda" if mine.hard.get("device", "").startswith("cuda ") else "cpu").environment()
    # The thread count is the process's own affair: it is no part of what the machine offers.
    hard = {**here.hard, **({"threads": mine.hard["threads"]} if "threads" in mine.hard else {})}
    if differences := mine.differences(Environment(hard=hard)):
        raise StoreError(
            f"{run.path}: made on another machine (there ≠ here): {'; '.join(differences)}; promote it there, where its tactics "
            "can be checked"
        )


def _check_ops(only: Sequence[str], run: Run) -> None:
    known = sorted({Problem.parse(key).op for key in run.verdicts})
    for name in only:
        if name not in known:
            raise UsageError(f"--op {name}: this run has no problem of it; it has {', '.join(known) or 'none at all'}")


def _no_better(verdict: Verdict, cached: Verdict | None, change: Change | None) -> str | None:
    """Why a verdict is not shown to be better than what serves now, or None."""
    if change is None or cached is None or not measured(cached):
        if verdict.winner != DEFAULT.name and verdict.low > 1:
            return None
        return "the cache did not measure it, and the run's interval does not lie above the default"
    if change.default_changed:
        return "the default is another one, so that the two speed-ups do not compare"
    if change.significant and change.low > 1:
        return None
    return f"not shown to be better: {change.ratio:.2f}× [{change.low:.2f}, {change.high:.2f}], q {change.q:.2g}"


def _remarks(run: Run, plans: Plans) -> list[str]:
    found = []
    if run.footer is None:
        found.append("the run did not end by itself: what it settled before is all there is of it")
    if run.misses:
        found.append(f"{len(run.misses)} lines of the run cannot be read; `tunebook show` names them")
    found += [
        f"the plan for {plan.model} was slower than the default on the whole model: with it the default serves"
        for plan in plans.put.values()
        if not plan.active
    ]
    return found
