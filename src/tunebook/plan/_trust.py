"""What a frontier's ratios are worth to a plan: none that contradicts its own verdict."""

from __future__ import annotations

from collections.abc import Mapping

from tunebook.records import Member, Problem, Tactic, Verdict


def trusted(
    members: Mapping[str, tuple[Member, ...]], verdicts: Mapping[str, Verdict]
) -> dict[str, tuple[Member, ...]]:
    """The members of all problems, those corrected whose ratio says that they are faster than the winner.

    A tactic that did not race is compared by its first looks, which may find its weights in a cache; it lost all the same.
    It is taken to be as slow as its runner and layout are on the worst size of the family, or as its interval allows; a
    survivor that tied is as fast as the winner.
    """
    worst: dict[tuple[str, str, str], float] = {}
    for key, some in members.items():
        for member in some:
            if not _contradicts(member, verdicts[key]):
                kind = _kind(key, member)
                worst[kind] = max(worst.get(kind, 0.0), member.ratio)
    return {
        key: tuple(_corrected(key, member, verdicts[key], worst) for member in some) for key, some in members.items()
    }


def _corrected(key: str, member: Member, verdict: Verdict, worst: Mapping[tuple[str, str, str], float]) -> Member:
    if member.ratio >= 1.0:
        return member
    ratio = 1.0
    if _contradicts(member, verdict):
        ratio = max(1.0, member.high, worst.get(_kind(key, member), 0.0))
    return Member(
        tactic=member.tactic,
        ratio=ratio,
        low=min(member.low, ratio),
        high=max(member.high, ratio),
        bytes=member.bytes,
        layout=member.layout,
    )


def _contradicts(member: Member, verdict: Verdict) -> bool:
    return member.ratio < 1.0 and member.tactic != verdict.winner and member.tactic not in verdict.ties


def _kind(key: str, member: Member) -> tuple[str, str, str]:
    return Problem.parse(key).family, Tactic.parse(member.tactic).runner, member.layout
