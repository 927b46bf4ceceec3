"""Which policy a start has, and what it says about who decided."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tunebook.envs import envs
from tunebook.errors import EnvironmentVariableError, TunebookError, UsageError
from tunebook.store import Policy, ResolvedPolicy, resolve_policy

ALIAS = "SGLANG_FLASHINFER_AUTOTUNE_CACHE"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TUNEBOOK_AUTOTUNE", "TUNEBOOK_AUTOTUNE_CACHE", ALIAS):
        monkeypatch.delenv(name, raising=False)


def test_reuse_is_the_default() -> None:
    assert resolve_policy() == ResolvedPolicy(policy=Policy.REUSE, why="default", overruled=())


@pytest.mark.parametrize("given", [Policy.FRESH, "fresh", " Fresh "])
def test_an_argument_decides(given: Policy | str) -> None:
    assert resolve_policy(policy=given) == ResolvedPolicy(
        policy=Policy.FRESH, why="argument policy=fresh", overruled=()
    )


def test_tune_mode_off_is_replay() -> None:
    found = resolve_policy(False)
    assert (found.policy, found.why) == (Policy.REPLAY, "argument tune_mode=False")
    assert resolve_policy(False, Policy.REPLAY).policy is Policy.REPLAY


@pytest.mark.parametrize("given", ["reuse", Policy.FRESH])
def test_tune_mode_off_contradicts_another_policy(given: Policy | str) -> None:
    with pytest.raises(UsageError, match=r"tune_mode=False.*policy=") as caught:
        resolve_policy(False, given)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TunebookError)


def test_an_unknown_policy_is_named_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"'newest'.*reuse, fresh, replay"):
        resolve_policy(policy="newest")


def test_the_cache_variable_makes_it_fresh() -> None:
    with envs.TUNEBOOK_AUTOTUNE_CACHE.override(False):
        found = resolve_policy()
    assert found == ResolvedPolicy(policy=Policy.FRESH, why="TUNEBOOK_AUTOTUNE_CACHE=0", overruled=())
    assert resolve_policy().policy is Policy.REUSE


def test_the_alias_makes_it_fresh_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALIAS, "0")
    assert resolve_policy().policy is Policy.FRESH
    assert resolve_policy().why == f"alias {ALIAS}=0"
    with envs.TUNEBOOK_AUTOTUNE_CACHE.override(True):
        found = resolve_policy()
    assert (found.policy, found.why) == (Policy.REUSE, "TUNEBOOK_AUTOTUNE_CACHE=1")


def test_autotune_off_is_replay() -> None:
    with envs.TUNEBOOK_AUTOTUNE.override(False):
        assert resolve_policy() == ResolvedPolicy(policy=Policy.REPLAY, why="TUNEBOOK_AUTOTUNE=0", overruled=())


def test_with_both_off_the_cache_is_read_and_the_log_can_say_so() -> None:
    with envs.TUNEBOOK_AUTOTUNE.override(False), envs.TUNEBOOK_AUTOTUNE_CACHE.override(False):
        found = resolve_policy()
    assert (found.policy, found.why) == (Policy.REPLAY, "TUNEBOOK_AUTOTUNE=0")
    (lost,) = found.overruled
    assert lost.startswith("TUNEBOOK_AUTOTUNE_CACHE=0")
    assert "the cache is read" in lost


# What each variable says, what is given, and which variables lose.
CASES = [
    (None, False, {"policy": "reuse"}, ["TUNEBOOK_AUTOTUNE_CACHE=0"]),
    (None, True, {"policy": "fresh"}, ["TUNEBOOK_AUTOTUNE_CACHE=1"]),
    (None, True, {"policy": "reuse"}, []),
    (False, None, {"policy": "fresh"}, ["TUNEBOOK_AUTOTUNE=0"]),
    (False, False, {"policy": "reuse"}, ["TUNEBOOK_AUTOTUNE=0", "TUNEBOOK_AUTOTUNE_CACHE=0"]),
    (False, False, {"policy": "fresh"}, ["TUNEBOOK_AUTOTUNE=0"]),
    (False, None, {"tune_mode": False}, []),
    (True, False, {"tune_mode": False}, ["TUNEBOOK_AUTOTUNE=1", "TUNEBOOK_AUTOTUNE_CACHE=0"]),
    (True, None, {"policy": "replay"}, ["TUNEBOOK_AUTOTUNE=1"]),
]


@pytest.mark.parametrize(("autotune", "cache", "given", "lost"), CASES)
def test_what_lost_to_an_argument_is_listed(
    autotune: bool | None, cache: bool | None, given: dict[str, object], lost: list[str]
) -> None:
    with ExitStack() as stack:
        for variable, value in ((envs.TUNEBOOK_AUTOTUNE, autotune), (envs.TUNEBOOK_AUTOTUNE_CACHE, cache)):
            if value is not None:
                stack.enter_context(variable.override(value))
        found = resolve_policy(**given)  # type: ignore[arg-type]
    assert found.why.startswith("argument ")
    assert [text.split(" (")[0] for text in found.overruled] == lost


def test_a_value_that_cannot_be_used_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEBOOK_AUTOTUNE_CACHE", "perhaps")
    with pytest.raises(EnvironmentVariableError, match=r"TUNEBOOK_AUTOTUNE_CACHE.*perhaps"):
        resolve_policy()


def _overruled_texts() -> Iterator[str]:
    with envs.TUNEBOOK_AUTOTUNE.override(False), envs.TUNEBOOK_AUTOTUNE_CACHE.override(False):
        yield from resolve_policy(policy="reuse").overruled


def test_what_lost_is_told_in_words() -> None:
    for text in _overruled_texts():
        assert "argument policy=reuse goes before it" in text
