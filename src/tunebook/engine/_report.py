"""What one autotune did, as one document: problems, seconds, plan, phases, files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tunebook.devices import Device
from tunebook.engine._phases import PhaseRequest
from tunebook.records import Plan
from tunebook.tuner import Outcome, Session

STAGES = ("load", "collect", "tune", "prepare", "verify", "start")


def timer(device: Device) -> Callable[[], float]:
    """Seconds since now, on the device's clock."""
    start = device.clock()
    return lambda: device.clock() - start


@dataclass
class TuneReport:
    """Filled by `ModelRunner.autotune`; `why` says why it tuned, or why it did not have to."""

    model: str
    session: Session
    why: str
    load_seconds: float = 0.0
    outcome: Outcome = field(default_factory=Outcome)
    plan: Plan | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    steps: dict[PhaseRequest, float] = field(default_factory=dict)

    @property
    def tuned(self) -> bool:
        return self.outcome.tuned > 0

    @property
    def left_out(self) -> list[str]:
        """The problems that were not measured, in this tuning or in the one that the cache comes from, the costliest first."""
        verdicts = self.outcome.verdicts
        keys = [key for key, verdict in verdicts.items() if verdict.note.startswith("left out")]
        return sorted(keys, key=lambda key: -self.outcome.weights.get(key, 0.0))

    @property
    def origins(self) -> dict[str, str]:
        """By problem, the file of TUNEBOOK_CACHE_PATH whose verdict serves it; the others are the cache's, or new."""
        return {key: str(path) for key, path in self.session.recall.origins(self.outcome.verdicts).items()}

    @property
    def run_problem(self) -> str | None:
        """Why the run file is missing or incomplete, or None."""
        problem: str | None = getattr(self.session, "run_problem", None)
        return problem

    def document(self) -> dict[str, Any]:
        """The report as plain values, for ``tunebook tune --json``. Seconds are wall clock, times of a step milliseconds."""
        plan, outcome = self.plan, self.outcome
        return {
            "model": self.model,
            "policy": self.session.policy.value,
            "why": self.why,
            "environment": {
                "digest": self.session.environment.digest,
                "hard": self.session.environment.hard,
                "soft": self.session.environment.soft,
            },
            "problems": {
                "seen": outcome.seen,
                "cached": outcome.cached,
                "resumed": outcome.resumed,
                "tuned": outcome.tuned,
                "kept_default": outcome.kept_default,
                "rejected_tactics": len(outcome.rejected),
                "left_out": outcome.left_out,
            },
            "origins": self.origins,
            "left_out": self.left_out,
            "seconds": {"load": self.load_seconds, **{name: self.seconds.get(name, 0.0) for name in STAGES[1:]}},
            "plan": {
                "verified": bool(plan and plan.verified),
                "active": bool(plan and plan.active),
                "bytes": plan.bytes if plan else 0,
                "tactics": dict(plan.tactics) if plan else {},
                "reverted": dict(plan.reverted) if plan else {},
                "limit": plan.limit if plan else "",
                "model_bytes": plan.model_bytes if plan else 0,
                "released_bytes": plan.released if plan else 0,
                "families": [msgspec.to_builtins(holding) for holding in (plan.holdings if plan else ())],
                "mix": msgspec.to_builtins(plan.mix) if plan and plan.mix else None,
                "batch_invariant": bool(plan and plan.batch_invariant),
                "planned_from": plan.planned_from if plan else "",
            },
            "effects": [msgspec.to_builtins(effect) for effect in (plan.effects if plan else ())],
            "phases": [
                {**msgspec.to_builtins(phase), "outcome": phase.outcome} for phase in (plan.phases if plan else ())
            ],
            "overall": None
            if plan is None or plan.overall is None
            else {**msgspec.to_builtins(plan.overall), "outcome": plan.overall.outcome},
            "misses": [str(miss) for miss in self.session.recall.misses] + outcome.misses,
            "published": outcome.published,
            "not_published": outcome.not_published,
            "cache": str(self.session.location.cache),
            "run": self.session.run_path,
            "run_problem": self.run_problem,
        }
