"""What a session does at the end of a block on several ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tunebook.integrations.flashinfer._team import Met, Team, bare_key
from tunebook.integrations.flashinfer._verdict import all_that_may_serve
from tunebook.measure import allowance
from tunebook.records import Verdict
from tunebook.store import Policy

if TYPE_CHECKING:
    from tunebook.integrations.flashinfer._problems import Found
    from tunebook.integrations.flashinfer._session import Session


def tune_together(session: Session, team: Team) -> None:
    """Tune this rank's share, and serve what all ranks agree on. What was reached is published where a rank is lost, too."""
    found, ledger = session._problems.found, session._ledger
    team.group.enter("looking up what is known")
    untunable = session._untunable() if session.policy is not Policy.REPLAY else set(found)
    shares = team.share([_met(session, one, one.key not in untunable) for one in found.values()])
    mine = {number: found[one.keys[team.me]] for number, one in enumerate(shares) if team.me in one.keys}
    weights = {number: shares[number].weight for number in mine if shares[number].tuned_by == team.me}
    raced: dict[int, Verdict] = {}
    fresh: dict[str, Verdict] = {}
    try:
        _race(session, team, {number: mine[number] for number in weights}, list(weights.values()), raced)
        reached = team.exchange(raced)
        verdicts = {n: one.known for n, one in enumerate(shares) if one.known is not None} | reached
        able = {n: all_that_may_serve(session.package, mine[n], verdicts[n]) for n in mine if n in verdicts}
        for number, name in team.agree({n: list(members) for n, members in able.items()}).items():
            one = mine[number]
            verdict = msgspec.structs.replace(verdicts[number], problem=one.key)
            session._install(one, *able[number][name])
            if name != verdict.winner:
                ledger.miss(
                    f"{one.key}: {name} serves in the place of {verdict.winner}, which not every rank can serve"
                )
            if number in reached:
                fresh[one.key] = verdict
                ledger.conclude(one, verdict, told=number in raced)
            elif shares[number].sound:
                ledger.settle(one, verdict)
        for number, one in mine.items():
            place = shares[number].tuned_by
            if place is not None and place != team.me and number not in reached:
                session.outcome.left_out += 1
                ledger.miss(f"{one.key}: left out by {team.group.names[place]}, which was to tune it")
    finally:
        for number, verdict in raced.items():
            fresh.setdefault(mine[number].key, verdict)
        session._publish(fresh)


def _met(session: Session, one: Found, tunable: bool) -> Met:
    known = session._ledger.known(one)
    sound = known is not None and session._ledger.judged(one, known)[1]
    return Met(one.key, bare_key(one.problem), one.weight, tunable and not sound, known, sound)


def _race(
    session: Session, team: Team, todo: dict[int, Found], weights: list[float], raced: dict[int, Verdict]
) -> None:
    """This rank's share, a problem a turn; the seconds of its own turns count."""
    turns = team.turns()
    budget = team.budget(session._seconds_left())
    try:
        for place, (number, one) in enumerate(todo.items()):
            with turns.turn(one.key):
                left = max(0.0, budget - turns.seconds)
                result = session._race(one, allowance(left, weights, place), team.device)
            if result is not None:
                raced[number] = result[0]
    finally:
        session.outcome.seconds += turns.seconds
