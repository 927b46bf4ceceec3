"""Runs and caches whose content is known."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tunebook.records import (
    CacheDocument,
    Environment,
    Footer,
    Header,
    Member,
    Offered,
    Plan,
    PlanLine,
    Rejected,
    Timed,
    TrialLine,
    Verdict,
    VerdictLine,
)
from tunebook.store.run_writer import encode_line

ENVIRONMENT = Environment(hard={"device": "cpu of a test", "threads": "2"}, soft={"torch": "2.13", "load": "0.1"})
OFFERED = {"default": Offered(version="1", space=""), "native": Offered(version="7", space="s")}


class Made:
    """Makes what a tuning leaves: verdicts, runs and caches, with defaults for whatever a test does not care about."""

    environment = ENVIRONMENT
    offered = OFFERED

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache_path = folder / "winners.json"
        self.runs = folder / "runs"

    @staticmethod
    def key(size: int, op: str = "linear") -> str:
        return f"{op}|N=8,K=8|bf16|M≤{size}"

    def verdict(self, key: str, speedup: float = 1.5, *, spread: float = 0.01, **changes: Any) -> Verdict:
        """`speedup` of 1 is the default's own. `spread` is half of the interval, as a share."""
        winner = changes.get("winner", "default" if speedup == 1.0 else "native[tile=1]")
        default = Member(tactic="default", ratio=speedup, low=speedup * (1 - spread), high=speedup * (1 + spread))
        first = Member(tactic=winner, ratio=1.0, low=1.0, high=1.0)
        fields: dict[str, Any] = {
            "problem": key,
            "winner": winner,
            "status": "proven",
            "speedup": speedup,
            "low": speedup * (1 - spread),
            "high": speedup * (1 + spread),
            "seconds": 1e-4 / speedup,
            "frontier": (first,) if winner == "default" else (first, default),
            "offered": self.offered,
            "rounds": 20,
            "run": "a.jsonl",
        }
        return Verdict(**{**fields, **changes})

    def run(
        self,
        verdicts: Sequence[Verdict],
        *,
        name: str = "",
        trials: Mapping[str, Sequence[Timed | Rejected]] | None = None,
        plan: Plan | None = None,
        footer: bool = True,
        **header: Any,
    ) -> Path:
        """A run file beside the cache, a second after the one made before it."""
        self.runs.mkdir(parents=True, exist_ok=True)
        number = len(list(self.runs.iterdir()))
        started = header.pop("started", f"2026-01-01T00:{number // 60:02d}:{number % 60:02d}")
        path = self.runs / (name or f"winners.20260101_00{number // 60:02d}{number % 60:02d}.jsonl")
        fields: dict[str, Any] = {
            "session": f"s{number}",
            "started": started,
            "policy": "fresh",
            "environment": self.environment,
            "version": "0.1",
            "model": "a-model",
        }
        lines: list[Any] = [Header(**{**fields, **header})]
        lines += [TrialLine(problem=key, trial=trial) for key, several in (trials or {}).items() for trial in several]
        lines += [VerdictLine(verdict=verdict) for verdict in verdicts]
        lines += [PlanLine(plan=plan)] if plan is not None else []
        lines += [Footer(finished=started, seconds=12.5, problems=len(verdicts))] if footer else []
        path.write_bytes(b"".join(map(encode_line, lines)))
        return path

    def cache(self, verdicts: Sequence[Verdict], plans: Sequence[Plan] = ()) -> Path:
        by_key = {verdict.problem: verdict for verdict in verdicts}
        by_print = {plan.fingerprint: plan for plan in plans}
        document = CacheDocument(schema=1, environment=self.environment, verdicts=by_key, plans=by_print)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.cache_path.write_bytes(msgspec.json.encode(document))
        return self.cache_path

    def restarts(self, count: int, problems: int, deviation: float, seed: int = 0, **header: Any) -> list[Path]:
        """Runs of one code, whose speed-ups differ from run to run by a normal log-ratio of this standard deviation."""
        rng = random.Random(seed)
        return [
            self.run(
                [
                    self.verdict(self.key(size), 1.5 * 2.718281828 ** rng.gauss(0, deviation), spread=0.002)
                    for size in range(1, problems + 1)
                ],
                **header,
            )
            for _ in range(count)
        ]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "home")
