"""Rejections that are remembered: which of a former verdict's are not tried again, and which a new verdict keeps."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

import tunebook as tb
from tunebook.records import DEFAULT, Member, Offered, Problem, Rejected, Verdict
from tunebook.tuner import Selection, answer
from tunebook.tuner._entrants import entrants
from tunebook.tuner._journal import ProblemJournal
from tunebook.tuner._lineup import lineup_of
from tunebook.tuner._verdict import MAX_REJECTED, _foremost

pytestmark = pytest.mark.usefixtures("clean_ops")

KEY = "demo::op|x.1=4|fp32|x.0≤1"
VERSION = "default"


def declare(space: tuple[int, ...] = (1, 2, 3, 4), version: str = "1") -> Any:
    @tb.op("demo::op", buckets={"x": {0: tb.pow2()}})
    def op(x: Any) -> Any:
        return x

    @op.runner("a", space={"n": space}, version=version)
    def a(x: Any, *, n: int) -> Any:
        return x

    @op.runner("b", version="1")
    def b(x: Any) -> Any:
        return x

    return op


def rejection(tactic: str, reason: Any = "runtime", *, ran: bool = True, harm: bool = False) -> Rejected:
    return Rejected(tactic=tactic, reason=reason, detail="so", ran=ran, harm=harm)


def verdict(op: Any, *rejected: Rejected, winner: str = "b", default_version: str = VERSION, **fields: Any) -> Verdict:
    offered = {name: runner.offered for name, runner in op.runners.items()}
    return Verdict(
        problem=KEY,
        winner=winner,
        status="unresolved",
        speedup=1.5,
        low=1.4,
        high=1.6,
        seconds=0.001,
        frontier=(Member(tactic=winner, ratio=1.0, low=1.0, high=1.0),),
        offered={DEFAULT.runner: Offered(version=default_version, space=""), **offered, **fields},
        rejected=rejected,
        space=6,
        seen=6,
    )


def again(op: Any, known: Verdict, *changed: str) -> Any:
    """The field of a start that finds `known`, and has these runners race."""
    answered = answer(known, op, VERSION, Selection())
    answered = dataclasses.replace(answered, changed=(*answered.changed, *changed))
    return entrants(Problem.parse(KEY), op, VERSION, Selection(), answered)


def queued(field: Any) -> list[str]:
    return [tactic.name for queue in field.queues for tactic in queue]


def test_what_ran_and_was_rejected_is_not_tried_again_and_counts_as_seen() -> None:
    op = declare()
    crash = rejection("a[n=1]", "crash", harm=True)
    known = verdict(op, crash, rejection("a[n=2]"), rejection("a[n=3]", "memory", ran=False))
    field = again(op, known, "a")
    assert queued(field) == ["a[n=3]", "a[n=4]"], "what was refused unrun is judged anew"
    assert field.recalled == [crash, rejection("a[n=2]")]
    assert field.tactics == 6
    assert field.proven == {"b"}
    lineup = lineup_of(field, random.Random(0), ProblemJournal("", lambda line: None, lambda key, one: None, iter(())))
    assert lineup.seen == 3
    assert lineup.space == 6
    assert lineup.unreached == 3
    assert lineup.rejected == field.recalled


def test_a_changed_version_is_tried_again() -> None:
    op = declare()
    known = verdict(op, rejection("a[n=1]", "crash", harm=True))
    field = again(declare(version="2"), known)
    assert queued(field) == ["a[n=1]", "a[n=2]", "a[n=3]", "a[n=4]"]
    assert not field.recalled


def test_another_space_of_the_same_version_tries_what_is_new() -> None:
    known = verdict(declare(), rejection("a[n=1]", "timeout", harm=True), rejection("a[n=4]"))
    field = again(declare(space=(1, 2, 5)), known)
    assert queued(field) == ["a[n=2]", "a[n=5]"]
    assert [one.tactic for one in field.recalled] == ["a[n=1]"]


def test_another_default_is_another_reference_but_harm_stays_harm() -> None:
    op = declare()
    known = verdict(
        op,
        rejection("a[n=1]", "crash", harm=True),
        rejection("a[n=2]", "correctness"),
        rejection("a[n=3]", "timeout", ran=False, harm=True),
        default_version="another",
    )
    field = again(op, known, "a")
    assert queued(field) == ["a[n=2]", "a[n=4]"]


def test_rejections_of_runners_that_do_not_race_are_carried() -> None:
    known = verdict(declare(), rejection("a[n=1]", "crash", harm=True), rejection("a[n=2]"))
    op = declare()

    op.runner("c", version="1")(lambda x: x)
    field = again(op, known)
    assert queued(field) == ["c"]
    assert [one.tactic for one in field.carried] == ["a[n=1]", "a[n=2]"]
    assert not field.recalled
    lineup = lineup_of(field, random.Random(0), ProblemJournal("", lambda line: None, lambda key, one: None, iter(())))
    assert lineup.seen == 1
    assert lineup.rejected == field.carried


def test_without_a_former_verdict_nothing_is_remembered() -> None:
    field = entrants(Problem.parse(KEY), declare(), VERSION, Selection(), None)
    assert queued(field) == ["a[n=1]", "a[n=2]", "a[n=3]", "a[n=4]", "b"]
    assert not field.proven


def test_a_verdict_keeps_all_that_did_harm() -> None:
    harm = [rejection(f"a[n={n}]", "crash", harm=True) for n in range(50)]
    others = [rejection(f"b[n={n}]", "correctness") for n in range(50)]
    one = rejection("c", "runtime")
    kept = _foremost([*others, *harm, one])
    assert set(harm) <= set(kept)
    assert one in kept
    assert len(kept) == len(harm) + MAX_REJECTED
    assert _foremost(harm) == tuple(harm)
