"""What a plan's record holds beside tactics: its terms, what it was weighted by, and what each family's weights cost and buy."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from tunebook.records import Holding, Mix, MixDocument, Plan, Profile

KEY, FAMILY = "linear|N=8|bf16|M≤1", "linear|N=8|bf16"
HOLDING: dict[str, Any] = {
    "family": FAMILY,
    "layers": 3,
    "layouts": {"k:a": 30, "k:b": 60},
    "buys": {"k:a": 1.2, "k:b": 1.0},
    "released": 27,
    "source": "k[form=a]",
}


def test_a_plan_reads_back_with_its_terms_and_says_what_it_releases() -> None:
    plan = Plan(
        model="m",
        fingerprint="f",
        tactics={KEY: "k[form=a]"},
        profile=(Profile(phase="decode 1", seconds=1.0, calls={KEY: 3}, taken={KEY: 0.5}),),
        holdings=(Holding(**HOLDING), Holding(family="o||fp32", layers=1, layouts={"k:a": 5})),
        limit="1.1x",
        mix=Mix(steps={"decode 1": 2.0}),
        batch_invariant=True,
    )
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan
    assert plan.sources == {FAMILY: "k[form=a]"}
    assert plan.released == 27


def test_a_plan_without_the_newer_fields_still_reads() -> None:
    plan = msgspec.json.decode(b'{"model": "m", "fingerprint": "f", "tactics": {}, "bytes": 7}', type=Plan)
    assert (plan.bytes, plan.released, plan.sources, plan.limit, plan.mix, plan.profile) == (7, 0, {}, "", None, ())


@pytest.mark.parametrize(
    "wrong",
    [{"layers": -1}, {"released": -1}, {"layouts": {"k:a": -1}}, {"buys": {"k:a": 0.0}}, {"buys": {"k:a": math.inf}}],
    ids=str,
)
def test_a_holding_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="linear"):
        Holding(**{**HOLDING, **wrong})


def test_a_source_that_is_no_tactic_is_refused() -> None:
    with pytest.raises(ValueError, match=r"k\["):
        Holding(**{**HOLDING, "source": "k[form"})


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"steps": {"decode 1": 1.0}, "calls": {KEY: 1}},
        {"steps": {"decode 1": 0.0}},
        {"steps": {"decode 1": math.inf}},
        {"calls": {KEY: 0}},
        {"calls": {"nonsense": 1}},
    ],
    ids=str,
)
def test_a_mix_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"mix|count|nonsense"):
        Mix(**wrong)


def test_a_mix_is_said_in_words() -> None:
    assert str(Mix(steps={"decode 1": 100.0, "prefill 8": 0.5})) == "decode 1=100,prefill 8=0.5"
    assert str(Mix(calls={KEY: 1000, "o|||": 234})) == "1,234 calls of 2 problems"


def test_a_file_of_calls_may_be_empty_and_holds_problems() -> None:
    assert MixDocument(model="m", fingerprint="f", calls={}).schema == 1
    with pytest.raises(ValueError, match="nonsense"):
        MixDocument(model="m", fingerprint="f", calls={"nonsense": 1})


@pytest.mark.parametrize(
    "wrong",
    [{"seconds": -1.0}, {"calls": {}}, {"taken": {KEY: math.nan}}, {"calls": {"x": 1}, "taken": {"x": 1.0}}],
    ids=str,
)
def test_a_profile_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"phase": "decode 1", "seconds": 1.0, "calls": {KEY: 3}, "taken": {KEY: 0.5}}
    assert Profile(**fields)
    with pytest.raises(ValueError, match=r"decode 1|linear|'x'"):
        Profile(**{**fields, **wrong})
