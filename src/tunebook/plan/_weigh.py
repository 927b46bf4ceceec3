"""What each problem counts for in a plan: its share of the time of the steps that the model is expected to serve."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tunebook.records import Mix, Problem, Profile

#: A problem that the mix does not meet counts so much of the heaviest one of its family.
UNMET_SHARE = 0.01


@dataclass(frozen=True)
class Shares:
    """The default's time by problem, as a share of the mix; `rest` is what the mix takes outside of all problems."""

    problems: dict[str, float]
    rest: float = 0.0


def weigh(keys: Iterable[str], profile: Sequence[Profile], mix: Mix | None, a_call: Mapping[str, float]) -> Shares:
    """What each of these problems takes of the default's time in the mix.

    Without a mix every phase of the profile counts alike, whatever its step takes, so that long prefills do not drown
    decoding; with the steps of phases, each phase counts by how long all its steps take. Where calls are counted, a problem
    takes its calls times `a_call`, the default's seconds a call.
    """
    wanted = list(keys)
    found = dict.fromkeys(wanted, 0.0)
    if mix is not None and mix.calls:
        taken = {key: mix.calls.get(key, 0) * a_call.get(key, 0.0) for key in wanted}
        total = sum(taken.values())
        rest, met = 0.0, {key: seconds / total for key, seconds in taken.items()} if total > 0 else {}
    else:
        shares = phase_shares(profile, mix)
        met = {}
        for phase in profile:
            for key, seconds in phase.taken.items():
                share = shares[phase.phase] * seconds / phase.seconds if phase.seconds > 0 else 0.0
                met[key] = met.get(key, 0.0) + share
        rest = max(0.0, 1.0 - sum(met.get(key, 0.0) for key in wanted))
    found |= {key: share for key, share in met.items() if key in found}
    return Shares(_with_unmet(found), rest)


def phase_shares(profile: Sequence[Profile], mix: Mix | None) -> dict[str, float]:
    """The share of each phase in the default's time of the mix."""
    steps = mix.steps if mix is not None else None
    taken = {phase.phase: 1.0 if steps is None else steps.get(phase.phase, 0.0) * phase.seconds for phase in profile}
    total = sum(taken.values())
    return {phase: seconds / total if total > 0 else 0.0 for phase, seconds in taken.items()}


def _with_unmet(shares: Mapping[str, float]) -> dict[str, float]:
    """The same with a small weight for what counts nothing: it will be called one day."""
    heaviest: dict[str, float] = {}
    for key, share in shares.items():
        family = Problem.parse(key).family
        heaviest[family] = max(heaviest.get(family, 0.0), share)
    least = min((share for share in heaviest.values() if share > 0), default=1.0)
    return {key: share or UNMET_SHARE * (heaviest[Problem.parse(key).family] or least) for key, share in shares.items()}
