"""What a session knows of each problem: kept by the cache or reached in it, settled or to be raced again."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from tunebook.integrations.flashinfer._package import Package
from tunebook.integrations.flashinfer._problems import Found
from tunebook.integrations.flashinfer._verdict import Serving, may_serve
from tunebook.records import Verdict
from tunebook.store import CacheContents
from tunebook.tuner import Outcome

logger = logging.getLogger("tunebook.flashinfer")


@dataclass
class Ledger:
    """`contents` are the cache's, None where it is not to be read. What is found out goes into `outcome`."""

    package: Package
    contents: CacheContents | None
    outcome: Outcome
    settled: set[str] = field(default_factory=set)

    def incumbent(self, key: str) -> str | None:
        """The winner of the cache's verdict."""
        kept = self.contents.verdicts.get(key) if self.contents is not None else None
        return None if kept is None else kept.winner

    def known(self, one: Found) -> Verdict | None:
        """What this session reached, or else the cache holds."""
        mine = self.outcome.verdicts.get(one.key)
        return mine or (self.contents.verdicts.get(one.key) if self.contents is not None else None)

    def judged(self, one: Found, known: Verdict) -> tuple[Serving, bool]:
        """What may serve of a known verdict, and whether that settles the problem; reasons why not are told."""
        serving = may_serve(self.package, one, known)
        stale = self._stale(one, known)
        for reason in (*serving.why, *([stale] if stale else [])):
            self.miss(f"{one.key}: {reason}")
        return serving, serving.member is not None and serving.sound and not stale

    def _stale(self, one: Found, known: Verdict) -> str:
        """Why a kept verdict is to be reached again, though its winner may serve; empty where it is not."""
        stamp = self.package.stamp
        for name in one.names:
            offered = known.offered.get(name)
            if offered is None:
                return f"{name} is new"
            if offered.version != stamp:
                return f"{name} was tuned with FlashInfer {offered.version}, this is {stamp}"
        return ""

    def settle(self, one: Found, kept: Verdict) -> None:
        """What is known of a problem holds."""
        self.settled.add(one.key)
        if one.key not in self.outcome.verdicts:
            self.outcome.cached += 1
            self.outcome.verdicts[one.key] = kept

    def conclude(self, one: Found, verdict: Verdict, *, told: bool = True) -> None:
        """A verdict was reached now; `told`: by this rank, which logs it."""
        self.outcome.verdicts[one.key] = verdict
        self.outcome.fresh.append(one.key)
        self.settled.add(one.key)
        level = logging.INFO if told else logging.DEBUG
        logger.log(level, "%s: %s (%s, %.2fx the default)", one.key, verdict.winner, verdict.status, verdict.speedup)

    def miss(self, text: str) -> None:
        """Why something is not as it could be; each is told once."""
        if text not in self.outcome.misses:
            self.outcome.misses.append(text)
            logger.info("cache miss: %s", text)
