"""What all ranks settled, put together: the same on each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from tunebook.dispatch import OPS
from tunebook.records import Member, Problem, Rejected, Verdict
from tunebook.tuner._entrants import Selection, answer
from tunebook.tuner._outcome import Outcome
from tunebook.tuner._ranks._group import Group
from tunebook.tuner._ranks._mail import GatheringWriter, MailingWriter
from tunebook.tuner._ranks._share import Shares
from tunebook.tuner._run_record import RunRecord


class Done(msgspec.Struct, frozen=True):
    """What one rank settled, or the leader tells of all."""

    verdicts: dict[str, Verdict]
    fresh: list[str]
    refused: list[tuple[str, Rejected]]
    left_out: int


def gather(group: Group, shares: Shares, record: RunRecord, selection: Selection, outcome: Outcome) -> None:
    """Put into `outcome` what all ranks settled, and into the run file what they have not sent yet."""
    if isinstance(record.begun, MailingWriter):
        record.begun.flush()
    own = [key for key, place in shares.tuned_by.items() if place == group.me]
    own += shares.together if group.leads else []
    fresh = [key for key in outcome.fresh if key in own]
    refused = [pair for pair in outcome.refused if pair[0] in own]
    every = group.gather("done", Done(outcome.verdicts, fresh, refused, outcome.left_out), Done)
    if isinstance(record.begun, GatheringWriter):
        record.begun.drain()
    everything = Done(
        _verdicts(every, {**shares.tuned_by, **dict.fromkeys(shares.together, 0)}),
        [key for one in every for key in one.fresh],
        [pair for one in every for pair in one.refused],
        sum(one.left_out for one in every) + len(shares.left),
    )
    told = group.tell("everything", everything if group.leads else None, Done)
    outcome.verdicts |= told.verdicts
    for key, verdict in told.verdicts.items():
        outcome.members[key] = _members(key, verdict, selection, outcome.members.get(key))
    outcome.fresh, outcome.refused, outcome.left_out = told.fresh, told.refused, told.left_out
    outcome.weights = dict(shares.weights)
    outcome.seen = len(shares.weights)


def _verdicts(every: Sequence[Done], settled_by: Mapping[str, int]) -> dict[str, Verdict]:
    """The verdicts of all ranks: of whoever settled a problem, else what the first that knows it found in the cache."""
    found: dict[str, Verdict] = {}
    for place, one in enumerate(every):
        for key, verdict in one.verdicts.items():
            if settled_by.get(key) == place or key not in found:
                found[key] = verdict
    return found


def _members(key: str, verdict: Verdict, selection: Selection, known: tuple[Member, ...] | None) -> tuple[Member, ...]:
    """The members of a verdict that may serve on this rank; `known` are those by what it knew before."""
    if known and known[0].tactic == verdict.winner:
        return known
    spec = OPS.get(Problem.parse(key).op)
    default = verdict.offered.get("default")
    if spec is None or default is None:  # no op of that name is declared here, so it is not called either
        return verdict.frontier
    return answer(verdict, spec, default.version, selection).members
