"""Importing: what of a bundle goes into this environment's cache, what does not and why, and the taking of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from tunebook.book._merging import judge
from tunebook.book.bundle._runs import names_beside, renamed, rest_on
from tunebook.errors import StoreError
from tunebook.ops import OpSpec
from tunebook.records import DEFAULT, Environment, Plan, Problem, Verdict
from tunebook.store import MAX_CACHE_BYTES, MAX_RUN_BYTES, CacheContents, Location, Published, publish, read_cache
from tunebook.store._text import cause, one_line
from tunebook.store.bundles import Bundle, open_bundle
from tunebook.store.cache import describe_differences, parse_cache
from tunebook.store.files import own_directory, read_bounded, replace_atomically
from tunebook.store.run_files import parse_run
from tunebook.tuner import Selection, answer

_E = TypeVar("_E", Verdict, Plan)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Something in a bundle that is not taken: a problem's key, a plan, a run, or a place in the file; and why."""

    what: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Import:
    """What would be taken out of the bundle at `path` into the cache at `location`.

    `verdicts` and `plans` go in, where the cache holds `seen` and `seen_plans` under their keys; `runs` are new files beside the
    cache, by name; `same` is how much of it is there already;
    `undeclared` are the ops that are not declared in this process, whose tactics are checked by who serves them.
    """

    path: Path
    location: Location
    environment: Environment
    verdicts: Mapping[str, Verdict]
    plans: Mapping[str, Plan]
    seen: Mapping[str, Verdict]
    seen_plans: Mapping[str, Plan]
    runs: Mapping[str, bytes]
    same: int
    refused: tuple[Refusal, ...]
    undeclared: tuple[str, ...]

    @property
    def empty(self) -> bool:
        return not self.verdicts and not self.plans


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What became of an import: `problem` names what of it could not be kept, None where all was."""

    published: Published
    runs: int
    problem: str | None


def plan_import(path: Path, environment: Environment, location: Location) -> Import:
    """What of a bundle goes into this environment's cache.

    What the cache holds stays: a verdict of the bundle goes in where the cache has none, was not measured, or is less well
    supported about the same tactics; a plan where it has none, or none that was compared on the whole model. What an op that is
    declared here does not offer is refused. Raises StoreError, in one line, for what is no bundle, for one of another
    environment with each hard field that differs, and for a cache that must be left as it is.
    """
    from tunebook.book._declared import declared_ops  # loads torch, which exporting does without

    with open_bundle(path) as bundle:
        contents = parse_cache(path, bundle.cache(MAX_CACHE_BYTES), None)
        _check(path, contents, environment)
        own = _own(location, environment)
        refused: list[Refusal] = []
        ops = declared_ops()
        verdicts, plans = dict(contents.verdicts), dict(contents.plans)
        taken = {
            key: verdict
            for key, verdict in verdicts.items()
            if _goes_in(key, verdict, own.verdicts.get(key), ops, refused)
        }
        planned = {key: plan for key, plan in plans.items() if _replaces(plan, own.plans.get(key), refused)}
        same = sum(_alike(v, own.verdicts.get(k)) for k, v in verdicts.items())
        same += sum(_alike(p, own.plans.get(k)) for k, p in plans.items())
        refused += [Refusal(what=miss.where, why=f"{miss.kind}: {miss.detail}") for miss in contents.misses]
        names, runs = _runs(bundle, environment, location, rest_on(taken.values(), planned.values()), refused)
    going_in, plans_in = renamed(taken, planned, names)
    called = dict.fromkeys(Problem.parse(key).op for key in going_in)
    return Import(
        path=path,
        location=location,
        environment=environment,
        verdicts=going_in,
        plans=plans_in,
        seen={key: own.verdicts[key] for key in going_in if key in own.verdicts},
        seen_plans={key: own.plans[key] for key in plans_in if key in own.plans},
        runs=runs,
        same=same,
        refused=tuple(refused),
        undeclared=tuple(sorted(op for op in called if op not in ops)),
    )


def take(chosen: Import) -> Taken:
    """Put it into the cache and beside it.

    Raises StoreError where the cache could not take anything, and where another process has changed it since it was looked at;
    then nothing is written.
    """
    own = _own(chosen.location, chosen.environment)
    changed = [key for key in chosen.verdicts if own.verdicts.get(key) != chosen.seen.get(key)]
    changed += [f"the plan {key}" for key in chosen.plans if own.plans.get(key) != chosen.seen_plans.get(key)]
    if changed:
        raise StoreError(
            f"{one_line(chosen.location.cache)}: another process has changed it since it was looked at ({one_line(changed[0])}); "
            "nothing was imported, look again"
        )
    published = publish(chosen.location, chosen.environment, chosen.verdicts, chosen.plans)
    if published.problem and not published.written:
        raise StoreError(f"nothing was imported: {published.problem}")
    problem, written = published.problem, 0
    for name, data in chosen.runs.items():
        path = chosen.location.runs / name
        try:
            own_directory(path.parent)
            replace_atomically(path, data, check=partial(_check_absent, path))
            written += 1
        except OSError as error:
            problem = problem or f"the run {one_line(path)} was not written: {cause(error)}"
    return Taken(published=published, runs=written, problem=problem)


def _check_absent(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} is there already")


def _check(path: Path, contents: CacheContents, environment: Environment) -> None:
    """Raise StoreError for a cache that cannot be read as a whole, and for one of another environment."""
    for miss in contents.misses:
        if miss.kind != "entry":
            raise StoreError(str(miss))
    assert contents.environment is not None
    if (differences := describe_differences(environment, contents.environment)) is not None:
        raise StoreError(
            f"{one_line(path)}: {differences}; nothing of it would serve here. Where it does, name it in TUNEBOOK_CACHE_PATH"
        )


def _own(location: Location, environment: Environment) -> CacheContents:
    """The user's own cache. Raises StoreError for a file that is none of this environment, which publishing would leave alone."""
    own = read_cache(location.cache, environment)
    for miss in own.misses:
        if miss.kind in ("environment", "unreadable"):
            raise StoreError(f"{miss}; nothing is imported")
    own.found.loud = False
    return own


def _goes_in(
    key: str, verdict: Verdict, own: Verdict | None, ops: Mapping[str, OpSpec], refused: list[Refusal]
) -> bool:
    if _alike(verdict, own):
        return False
    why = _unfit(verdict, ops.get(Problem.parse(key).op))
    if why is None and own is not None:
        # The cache's own counts as the later one.
        kept, reason = judge(verdict, own)
        why = None if kept == "A" else f"the cache's own stays: {reason}"
    if why is not None:
        refused.append(Refusal(what=key, why=why))
    return why is None


def _unfit(verdict: Verdict, spec: OpSpec | None) -> str | None:
    """Why nothing of a verdict can serve here, or None. Which default an attached module has is compared by who serves."""
    if spec is None:
        return None
    default = verdict.offered.get(DEFAULT.runner)
    worth = answer(verdict, spec, default.version if default is not None else "", Selection())
    return None if worth.members else "; ".join(worth.notes) or "nothing of it is offered"


def _replaces(plan: Plan, own: Plan | None, refused: list[Refusal]) -> bool:
    if _alike(plan, own):
        return False
    if own is None or (plan.verified and not own.verified):
        return True
    refused.append(Refusal(what=f"plan for {one_line(plan.model)}", why="the cache's own stays"))
    return False


def _alike(entry: _E, own: _E | None) -> bool:
    """Whether two results are one, wherever the run that they come from lies."""
    return own is not None and _nameless(entry) == _nameless(own)


def _nameless(entry: Verdict | Plan) -> Verdict | Plan:
    return msgspec.structs.replace(entry, run="")


def _runs(
    bundle: Bundle, environment: Environment, location: Location, wanted: set[str], refused: list[Refusal]
) -> tuple[dict[str, str], dict[str, bytes]]:
    """The names beside the cache of the wanted runs, by their names in the bundle, and the bytes of those that are new."""
    names: dict[str, str] = {}
    new: dict[str, bytes] = {}
    for name in bundle.runs:
        try:
            if name not in wanted:
                raise StoreError("nothing that is taken comes from it")
            data = _run(bundle, name, environment)
            names[name], absent = _beside(location, name, data, new)
            if absent:
                new[names[name]] = data
        except StoreError as error:
            refused.append(Refusal(what=f"run {name}", why=str(error)))
    return names, new


def _run(bundle: Bundle, name: str, environment: Environment) -> bytes:
    """The bytes of a run. Raises StoreError for one that is damaged, or of another environment."""
    data = bundle.run(name)
    header = parse_run(bundle.path / "runs" / name, data).header
    if differences := header.environment.differences(environment):
        raise StoreError(f"it is of another environment: {one_line('; '.join(differences))}")
    return data


def _beside(location: Location, name: str, data: bytes, taken: Mapping[str, bytes]) -> tuple[str, bool]:
    """What a run is called beside the cache: a name that is free, and True; or the one under which it is there already.

    Raises StoreError where other files have all the names that it could get.
    """
    for other in names_beside(name, location.stem):
        path = location.runs / other
        with suppress(OSError):
            if other not in taken and not path.exists() and not path.is_symlink():
                return other, True
            if path.stat().st_size == len(data) and read_bounded(path, MAX_RUN_BYTES) == data:
                return other, False
    raise StoreError("other runs have all the names that it could get")
