"""Samples that the tests of the store share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pytest

from tunebook.records import Dim, Environment, Header, Member, Offered, Plan, Problem, Verdict


class MakeVerdict(Protocol):
    def __call__(self, size: int = 16, *, op: str = "linear", winner: str = ..., speedup: float = 1.5) -> Verdict: ...


@pytest.fixture(scope="session")
def environment() -> Environment:
    return Environment(hard={"device": "cpu", "isa": "avx512", "cores": "8"}, soft={"torch": "2.13.0"})


@pytest.fixture(scope="session")
def make_verdict() -> MakeVerdict:
    def make(
        size: int = 16, *, op: str = "linear", winner: str = "onednn[batch_hint=16]", speedup: float = 1.5
    ) -> Verdict:
        problem = Problem(op=op, attrs=(("N", "64"), ("K", "32")), dtypes=("bf16",), dims=(Dim(name="M", size=size),))
        return Verdict(
            problem=problem.key,
            winner=winner,
            status="proven",
            speedup=speedup,
            low=speedup * 0.9,
            high=speedup * 1.1,
            seconds=1e-4,
            frontier=(
                Member(tactic=winner, ratio=1.0, low=1.0, high=1.0),
                Member(tactic="default", ratio=1.5, low=1.4, high=1.6),
            ),
            offered={winner.partition("[")[0]: Offered(version="1", space="ab12")},
        )

    return make


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., Plan]:
    def make(fingerprint: str = "f00d", **fields: object) -> Plan:
        tactics = {"linear|N=64|bf16|M≤16": "default"}
        return Plan(model="tiny-moe", fingerprint=fingerprint, tactics=tactics, **fields)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def header(environment: Environment) -> Header:
    return Header(
        session="0123456789ab",
        started="2025-01-02T03:04:05+00:00",
        policy="fresh",
        environment=environment,
        version="0.1.0",
        model="tiny-moe",
        command=("tunebook", "tune"),
    )
