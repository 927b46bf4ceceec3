"""What a plan is made for: memory limits, and the weight of each problem in the mix of steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebook.errors import UsageError
from tunebook.plan import MemoryLimit, Shares, phase_shares, weigh
from tunebook.records import Mix, Profile

A1, A64, B1, B2 = "a||bf16|M≤1", "a||bf16|M≤64", "b||bf16|M≤1", "b||bf16|M≤2"
#: A decode of 10 s, 6 of them in `a` and 2 in `b`; a prefill of 1000 s, 900 of them in `a`.
PROFILE = (
    Profile(phase="decode 1", seconds=10.0, calls={A1: 3, B1: 2}, taken={A1: 6.0, B1: 2.0}),
    Profile(phase="prefill 64", seconds=1000.0, calls={A64: 3}, taken={A64: 900.0}),
)
UNMET = 0.01


@pytest.mark.parametrize(
    ("text", "model", "beside"),
    [
        ("1.1x", 1000, 100),
        ("1x", 1000, 0),
        ("2.5X", 10, 15),
        ("3GiB", 1 << 30, 2 << 30),
        ("3 GB", 10**9, 2 * 10**9),
        ("1500B", 1000, 500),
        ("0.5kB", 500, 0),
        ("1TiB", 0, 1 << 40),
    ],
)
def test_a_limit_is_a_multiple_or_a_size(text: str, model: int, beside: int) -> None:
    limit = MemoryLimit.parse(text)
    assert limit.beside(model) == beside
    assert MemoryLimit.parse(str(limit)) == limit


def test_without_a_limit_it_is_a_tenth_beside_the_model() -> None:
    assert MemoryLimit().beside(1000) == 100
    assert str(MemoryLimit()) == "1.1x"


@pytest.mark.parametrize(
    "text", ["0.99x", "0x", "-1x", "x", "", "1.1", "3", "3 GX", "3iB", "nanx", "infx", "1e3x", "0B"]
)
def test_what_is_no_limit_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match="--memory-limit") as error:
        MemoryLimit.parse(text, "--memory-limit")
    assert repr(text) in str(error.value)
    assert "1.1x" in str(error.value)


def test_a_limit_below_the_model_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="1000B is less than the model's own weights, 1001 bytes"):
        MemoryLimit.parse("1kB").beside(1001)


def test_phases_count_alike_whatever_they_take() -> None:
    assert phase_shares(PROFILE, None) == {"decode 1": 0.5, "prefill 64": 0.5}
    shares = weigh([A1, A64, B1, B2], PROFILE, None, {})
    assert shares.problems[A1] == pytest.approx(0.5 * 0.6)
    assert shares.problems[B1] == pytest.approx(0.5 * 0.2)
    assert shares.problems[A64] == pytest.approx(0.5 * 0.9)
    assert shares.rest == pytest.approx(0.5 * 0.2 + 0.5 * 0.1)
    assert shares.problems[B2] == pytest.approx(UNMET * shares.problems[B1]), "what was not met counts a little"


def test_steps_that_are_counted_count_by_the_time_that_they_take() -> None:
    mix = Mix(steps={"decode 1": 100, "prefill 64": 1})
    assert phase_shares(PROFILE, mix) == {"decode 1": pytest.approx(0.5), "prefill 64": pytest.approx(0.5)}
    assert weigh([A1, A64, B1], PROFILE, mix, {}) == weigh([A1, A64, B1], PROFILE, None, {})
    alone = weigh([A1, A64, B1], PROFILE, Mix(steps={"decode 1": 7}), {})
    assert alone.problems[A1] == pytest.approx(0.6)
    assert alone.problems[A64] == pytest.approx(UNMET * 0.6)


def test_recorded_calls_count_by_what_the_default_takes_for_them() -> None:
    shares = weigh([A1, B1, B2], PROFILE, Mix(calls={A1: 10, B1: 30, "c||bf16|M≤1": 5}), {A1: 2.0, B1: 1.0, B2: 4.0})
    assert shares.problems[A1] == pytest.approx(20 / 50)
    assert shares.problems[B1] == pytest.approx(30 / 50)
    assert shares.problems[B2] == pytest.approx(UNMET * 30 / 50)
    assert shares.rest == 0.0


def test_calls_of_nothing_that_is_known_leave_all_alike() -> None:
    shares = weigh([A1, B1], PROFILE, Mix(calls={"c||bf16|M≤1": 5}), {A1: 2.0, B1: 1.0})
    assert shares.problems[A1] == shares.problems[B1] > 0
    assert weigh([], PROFILE, None, {}) == Shares({}, 1.0)


@given(
    st.dictionaries(st.sampled_from([A1, A64, B1, B2]), st.just(0.0) | st.floats(1e-6, 1e3), min_size=1),
    st.none() | st.floats(0.1, 1e3).map(lambda count: Mix(steps={"decode 1": count})),
)
def test_every_problem_has_a_weight_and_all_shares_are_one(taken: dict[str, float], mix: Mix | None) -> None:
    profile = [Profile(phase="decode 1", seconds=sum(taken.values()) + 1, calls=dict.fromkeys(taken, 1), taken=taken)]
    shares = weigh([A1, A64, B1, B2], profile, mix, {})
    assert all(share > 0 for share in shares.problems.values())
    met = sum(share for key, share in shares.problems.items() if taken.get(key))
    assert met + shares.rest == pytest.approx(1.0)
