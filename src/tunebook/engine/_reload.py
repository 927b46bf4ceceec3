"""Reading the cache again in a process that serves: what others have published since is served without a restart."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunebook.engine._report import TuneReport
from tunebook.engine._stale import plan_key, staleness
from tunebook.engine._terms import Terms
from tunebook.engine._warm import start_from
from tunebook.records import DEFAULT, Plan
from tunebook.tuner import Session

if TYPE_CHECKING:
    from tunebook.engine._runner import ModelRunner

logger = logging.getLogger("tunebook.engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloaded:
    """What a reload did: `changed` gives, by problem key, the tactic that served before and the one that serves now.

    `why` says in words what was found; `misses` are what of the cache cannot be served.
    """

    changed: Mapping[str, tuple[str, str]]
    why: str
    misses: tuple[str, ...] = ()


def reload(runner: ModelRunner, session: Session, terms: Terms) -> Reloaded:
    """Serve what the cache that `session` has just read holds, if it is something else than what serves."""
    before = _serving(runner)
    plan, stale = session.recall.plan_of(plan_key(runner, terms)), staleness(runner, session, (), terms)
    cache = session.location.cache
    if plan is not None and not stale and runner.plan is not None and _same(plan, runner.plan):
        return _reloaded(session, {}, f"the plan in {cache} is the one that serves")
    if (plan is None or stale) and runner.plan is not None:
        return _reloaded(session, {}, f"what serves stays: {stale}")
    report = TuneReport(model=runner.name, session=session, why="reload")
    start_from(runner, session, terms, report, None)
    runner.plan = report.plan
    now = _serving(runner)
    changed = {
        key: (before.get(key, DEFAULT.name), now.get(key, DEFAULT.name))
        for key in sorted(before.keys() | now.keys())
        if before.get(key, DEFAULT.name) != now.get(key, DEFAULT.name)
    }
    if runner.plan is not None:
        return _reloaded(session, changed, f"the plan in {cache} serves")
    return _reloaded(session, changed, f"there is no plan to serve ({stale}); single verdicts serve where they can")


def _same(plan: Plan, serves: Plan) -> bool:
    """Whether two plans serve alike; what was measured of them may differ."""
    return all(
        getattr(plan, name) == getattr(serves, name)
        for name in ("tactics", "modules", "layouts", "sources", "active", "requested", "limit", "mix")
    )


def _serving(runner: ModelRunner) -> dict[str, str]:
    scope = runner.scope
    return {key: tactic.name for key, tactic in scope.tactics.items()} if scope.tuned else {}


def _reloaded(session: Session, changed: Mapping[str, tuple[str, str]], why: str) -> Reloaded:
    logger.info("reload: %d problems are served by another tactic; %s", len(changed), why)
    return Reloaded(changed=changed, why=why, misses=tuple(str(miss) for miss in session.recall.misses))
