"""The line-up of a race: who passed, who was screened out, who was rejected and why."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from dataclasses import field as dataclass_field

from tunebook.measure import Finding
from tunebook.records import DEFAULT, Rejected, Tactic
from tunebook.tuner._replicas import Contender

logger = logging.getLogger("tunebook.tuner")


@dataclass
class Lineup:
    """Who races (the default first), who was screened out or rejected, and each one's first look in seconds."""

    contenders: list[Contender] = dataclass_field(default_factory=list)
    screened: list[Contender] = dataclass_field(default_factory=list)
    rejected: list[Rejected] = dataclass_field(default_factory=list)
    errors: dict[str, float] = dataclass_field(default_factory=lambda: {DEFAULT.name: 0.0})
    looks: dict[str, float] = dataclass_field(default_factory=dict)
    unseen: int = 0

    def reject(self, tactic: Tactic, finding: Finding) -> None:
        self.rejected.append(Rejected(tactic=tactic.name, reason=finding.reason, detail=finding.detail))
        logger.debug("%s rejected (%s): %s", tactic.name, finding.reason, finding.detail)
