"""What a session publishes: the verdicts and the plan that its cache does not hold yet."""

from __future__ import annotations

import logging

from tunebook.records import Environment, Plan
from tunebook.store import Location, Policy, publish
from tunebook.tuner._outcome import Outcome
from tunebook.tuner._recall import Recall
from tunebook.tuner._run_record import RunRecord

logger = logging.getLogger("tunebook.tuner")


class Publication:
    """The way into the run file and, with REUSE, into the cache at `location`, of what `recall` does not know."""

    def __init__(
        self, policy: Policy, location: Location, environment: Environment, recall: Recall, record: RunRecord
    ) -> None:
        self._policy = policy
        self._location = location
        self._environment = environment
        self._recall = recall
        self._record = record
        self._proposed: Plan | None = None

    def propose(self, plan: Plan) -> None:
        """Put a plan into the run file before it is proven; an interruption of the proof leaves it."""
        self._proposed = plan
        if self._record.begun is not None:
            self._record.begun.plan(plan)

    @property
    def unproven(self) -> Plan | None:
        """The plan that was proposed, unless the cache has one for its model."""
        plan, contents = self._proposed, self._recall.contents
        return None if plan is not None and contents is not None and plan.fingerprint in contents.plans else plan

    def publish(self, outcome: Outcome, plan: Plan | None = None, patience: float | None = None) -> str:
        """Publish the verdicts of `outcome`, which is told how that went, and the plan.

        Returns the path of the cache that has been written, or had it all; else an empty text.

        `patience` is how many seconds others who hold the cache's lock are waited for (None: as many as the store does).
        """
        if plan is not None and self._record.begun is not None and plan != self._proposed:
            self._record.begun.plan(plan)
        fresh = self._recall.unheld(outcome.verdicts)
        unchanged = plan is None or self._recall.holds(plan)
        if self._policy is not Policy.REUSE or (not fresh and unchanged):
            return ""
        plans = {} if plan is None else {plan.fingerprint: plan}
        published = publish(self._location, self._environment, fresh, plans, patience=patience)
        if published.note:
            logger.warning("%s", published.note)
        if published.problem:
            outcome.not_published = published.problem
            logger.warning(
                "the cache %s: %s", "lacks a part" if published.written else "was not written", published.problem
            )
        if published.written or not published.problem:
            outcome.published = True
            return str(published.path)
        return ""
