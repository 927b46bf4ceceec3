"""What a session did, and what it says about its policy when it begins."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from tunebook.records import DEFAULT, Member, Rejected, Tactic, Verdict
from tunebook.store import Location, Policy, ResolvedPolicy

logger = logging.getLogger("tunebook.tuner")


@dataclass
class Outcome:
    """What a session did. Seconds are wall clock; `resumed` problems were settled before the run was resumed."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    members: dict[str, tuple[Member, ...]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    seen: int = 0
    cached: int = 0
    resumed: int = 0
    fresh: list[str] = field(default_factory=list)
    refused: list[tuple[str, Rejected]] = field(default_factory=list)
    left_out: int = 0
    misses: list[str] = field(default_factory=list)
    seconds: float = 0.0
    published: bool = False
    not_published: str = ""

    @property
    def tactics(self) -> dict[str, Tactic]:
        """What serves each problem: the best member of its verdict's frontier that may serve today."""
        return {key: Tactic.parse(members[0].tactic) for key, members in self.members.items() if members}

    @property
    def kept_default(self) -> int:
        return sum(tactic == DEFAULT for tactic in self.tactics.values())

    @property
    def tuned(self) -> int:
        """How many problems were measured now."""
        return len(self.fresh)

    @property
    def rejected(self) -> tuple[tuple[str, Rejected], ...]:
        """The tactics that were rejected now, by problem."""
        return tuple(self.refused)


def log_policy(policy: ResolvedPolicy, location: Location) -> None:
    """Say which policy rules, by whose decision, and what lost."""
    for lost in policy.overruled:
        logger.info("overruled: %s", lost)
    if policy.policy is Policy.FRESH:
        logger.warning(
            "autotune cache reuse is off (%s): %s is neither read nor written; the result goes to %s",
            policy.why,
            location.cache,
            location.runs,
        )
    else:
        logger.info("autotune runs with the cache at %s (%s, %s)", location.cache, policy.policy.value, policy.why)
    if policy.policy is Policy.REPLAY:
        logger.info("nothing will be tuned: what the cache does not answer runs the default")
