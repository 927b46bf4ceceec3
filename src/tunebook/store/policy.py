"""What a start does with the cache: reuse it, tune afresh, or only replay it. And who decided that."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tunebook.envs import envs
from tunebook.errors import UsageError


class Policy(Enum):
    """The one mode of a tuning.

    - ``REUSE``: read the cache, tune what is missing, publish.
    - ``FRESH``: neither read nor write the cache; tune everything and write a run.
    - ``REPLAY``: read the cache only, never tune.
    """

    REUSE = "reuse"
    FRESH = "fresh"
    REPLAY = "replay"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedPolicy:
    """`policy`, the argument or variable that decided it (`why`), and what was asked for and lost (`overruled`)."""

    policy: Policy
    why: str
    overruled: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """A variable as it stands: who says so, whether it was set at all, and which policies agree with it."""

    said: str
    on: bool
    explicit: bool
    allows: frozenset[Policy]


def resolve_policy(tune_mode: bool = True, policy: Policy | str | None = None) -> ResolvedPolicy:
    """An argument goes before the environment, and the environment before the default, which is REUSE.

    ``tune_mode=False`` is REPLAY. ``TUNEBOOK_AUTOTUNE`` off is REPLAY as well, ``TUNEBOOK_AUTOTUNE_CACHE`` off is
    FRESH. With both off nothing is tuned, so the cache is all that there is to serve: REPLAY, which reads it. Raises
    ``UsageError`` (a ``ValueError``) for ``tune_mode=False`` together with another policy and for a policy that does
    not exist.
    """
    asked = _policy(policy)
    tune, reuse = _wishes()
    if not tune_mode:
        if asked not in (None, Policy.REPLAY):
            raise UsageError(
                f"tune_mode=False never tunes, and policy={asked.value} asks for a tuning: leave one of the two out"
            )
        return _decided(Policy.REPLAY, "argument tune_mode=False", tune, reuse)
    if asked is not None:
        return _decided(asked, f"argument policy={asked.value}", tune, reuse)
    if not tune.on:
        return _decided(Policy.REPLAY, tune.said, reuse)
    if not reuse.on:
        return _decided(Policy.FRESH, reuse.said)
    return _decided(Policy.REUSE, next((wish.said for wish in (reuse, tune) if wish.explicit), "default"))


def _policy(value: Policy | str | None) -> Policy | None:
    if value is None or isinstance(value, Policy):
        return value
    try:
        return Policy(value.strip().lower())
    except ValueError:
        known = ", ".join(one.value for one in Policy)
        raise UsageError(f"policy={value!r} does not exist; there are {known}") from None


def _wishes() -> tuple[_Wish, _Wish]:
    tune, reuse = envs.TUNEBOOK_AUTOTUNE, envs.TUNEBOOK_AUTOTUNE_CACHE
    tunes, reuses = tune.get(), reuse.get()
    return (
        _Wish(
            said=f"{tune.source()}={int(tunes)}",
            on=tunes,
            explicit=tune.is_set(),
            allows=frozenset({Policy.REUSE, Policy.FRESH}) if tunes else frozenset({Policy.REPLAY}),
        ),
        _Wish(
            said=f"{reuse.source()}={int(reuses)}",
            on=reuses,
            explicit=reuse.is_set(),
            allows=frozenset({Policy.REUSE, Policy.REPLAY}) if reuses else frozenset({Policy.FRESH}),
        ),
    )


_MEANING = {
    Policy.REUSE: "the cache is read, and what it lacks is tuned",
    Policy.FRESH: "everything is tuned, and the cache is left alone",
    Policy.REPLAY: "nothing is tuned, so the cache is read: it is all there is to serve",
}


def _decided(policy: Policy, why: str, *others: _Wish) -> ResolvedPolicy:
    lost = (wish.said for wish in others if wish.explicit and policy not in wish.allows)
    return ResolvedPolicy(
        policy=policy, why=why, overruled=tuple(f"{said} ({why} goes before it: {_MEANING[policy]})" for said in lost)
    )
