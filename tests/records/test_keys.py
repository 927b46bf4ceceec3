"""The names and keys of records: what is written reads back, what differs is named, what cannot be is refused at birth."""

from __future__ import annotations

import contextlib
import math
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tunebook.records import (
    DEFAULT,
    SIGNS,
    CacheDocument,
    Dim,
    Environment,
    Footer,
    Member,
    Offered,
    Overall,
    Phase,
    Plan,
    Problem,
    Reason,
    Rejected,
    Scalar,
    Tactic,
    Timed,
    TrialLine,
    Verdict,
    outcome,
)

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.:-]{0,8}", fullmatch=True)
#: Everything a key gives a meaning to, and what is not ASCII.
TEXT = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.text("|,=@≤≥[]'\"% \n\t\\/%2C+0123456789eE-.", max_size=12),
)
FILLED = TEXT.filter(bool)
SCALARS: st.SearchStrategy[Scalar] = st.one_of(
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=False),
    TEXT,
    st.sampled_from(
        [
            "",
            "1",
            "true",
            "True",
            "null",
            "NaN",
            "Infinity",
            "-Infinity",
            "1e5",
            "0x10",
            "'",
            "''",
            "'a'",
            " 1",
            "1 ",
            "[1]",
        ]
    ),
)
TACTICS = st.builds(
    Tactic,
    runner=NAMES,
    params=st.lists(st.tuples(NAMES, SCALARS), max_size=4, unique_by=lambda pair: pair[0]).map(tuple),
)


@st.composite
def dims(draw: st.DrawFn) -> Dim:
    rounding = draw(st.sampled_from(sorted(SIGNS)))
    rule = draw(st.one_of(st.just("pow2"), FILLED))
    return Dim(name=draw(FILLED), size=draw(st.integers(0, 1 << 40)), rounding=rounding, rule=rule)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    named = draw(st.lists(FILLED, max_size=5, unique=True))
    split = draw(st.integers(0, len(named)))
    return Problem(
        op=draw(NAMES),
        attrs=tuple((name, draw(TEXT)) for name in named[:split]),
        dtypes=tuple(draw(st.lists(FILLED, max_size=3))),
        dims=tuple(msgspec.structs.replace(draw(dims()), name=name) for name in named[split:]),
        policy=draw(st.one_of(st.just("eager"), NAMES)),
    )


def same(mine: Scalar, theirs: Scalar) -> bool:
    """Equal, of one type, and of one sign where both are zero."""
    return type(mine) is type(theirs) and repr(mine) == repr(theirs)


# ---------------------------------------------------------------------------------------------------------- tactics


@given(TACTICS)
def test_a_tactic_reads_back_from_its_name_with_types_and_order(tactic: Tactic) -> None:
    back = Tactic.parse(tactic.name)
    assert back == tactic
    assert [name for name, _ in back.params] == [name for name, _ in tactic.params]
    assert all(same(a, b) for (_, a), (_, b) in zip(back.params, tactic.params, strict=True))
    assert back.name == tactic.name == str(tactic)


@given(SCALARS, SCALARS)
def test_two_values_never_share_a_name(one: Scalar, other: Scalar) -> None:
    assume(not same(one, other))
    assert Tactic(runner="r", params=(("p", one),)).name != Tactic(runner="r", params=(("p", other),)).name


def test_names_are_readable() -> None:
    assert DEFAULT.name == "default"
    tactic = Tactic(runner="onednn", params=(("batch_hint", 16), ("fast", True), ("mode", "a b"), ("scale", 0.5)))
    assert tactic.name == "onednn[batch_hint=16,fast=true,mode=a b,scale=0.5]"
    assert Tactic(runner="r", params=(("mode", "1"),)).name == "r[mode='1']"
    assert tactic.kwargs == {"batch_hint": 16, "fast": True, "mode": "a b", "scale": 0.5}


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("", "''"),
        ("[a=1]", "[a=1]"),
        ("r[a=1", "r[a=1"),
        ("r[a]", "'a'"),
        ("r x", "'r x'"),
        ("r[1a=2]", "'1a'"),
        ("r[a=1,a=2]", "twice"),
    ],
)
def test_a_name_that_is_none_is_refused_with_the_part_that_is_wrong(name: str, named: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Tactic.parse(name)
    assert named in str(caught.value)


def test_a_parameter_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not a number"):
        Tactic(runner="r", params=(("p", math.nan),))


@pytest.mark.parametrize("value", [None, (1, 2), [1], b"x", 1j], ids=repr)
def test_a_parameter_that_a_name_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        Tactic(runner="r", params=(("p", value),))


# --------------------------------------------------------------------------------------------------------- problems


@given(problems())
@example(Problem(op="o", dims=(Dim(name="M", size=16, rounding="exact", rule="exact"),)))
@example(Problem(op="o", dims=(Dim(name="M", size=16, rounding="down", rule="a@b"),)))
@example(Problem(op="o", attrs=(("a", ""), ("b|c", "d=e,f"))))
def test_a_problem_reads_back_from_its_key(problem: Problem) -> None:
    back = Problem.parse(problem.key)
    assert back.key == problem.key == str(problem)
    assert back.family == problem.family
    assert back == problem
    assert back.differences(problem) == []


@given(problems(), st.one_of(problems(), st.none()), st.data())
def test_what_differs_has_another_key_and_a_name(one: Problem, other: Problem | None, data: st.DataObject) -> None:
    if other is None:  # a near miss: one field replaced
        field = data.draw(st.sampled_from(["op", "attrs", "dtypes", "dims", "policy"]))
        changed = {"attrs": one.attrs, "dims": one.dims, field: getattr(data.draw(problems()), field)}
        names = [name for name, _ in changed["attrs"]] + [dim.name for dim in changed["dims"]]
        assume(len(set(names)) == len(names))
        other = msgspec.structs.replace(one, **changed)
    assert (one.key == other.key) == (one == other)
    assume("-" not in [value for _, value in (*one.attrs, *other.attrs)])
    same_but_for_order = (sorted(one.attrs), sorted(map(str, one.dims))) == (
        sorted(other.attrs),
        sorted(map(str, other.dims)),
    )
    same_kind = (one.op, one.policy, one.dtypes) == (other.op, other.policy, other.dtypes)
    assert (one.differences(other) == []) == (same_kind and same_but_for_order)


def test_a_key_is_readable_and_the_defaults_are_left_out() -> None:
    experts = Problem(op="experts", attrs=(("E", "32"), ("K", "8")), dtypes=("bf16",), dims=(Dim(name="M", size=16),))
    assert experts.key == "experts|E=32,K=8|bf16|M≤16"
    assert experts.family == "experts|E=32,K=8|bf16"
    ruled = Dim(name="N", size=8, rounding="down", rule="mine")
    other = Problem(op="o", dims=(Dim(name="M", size=3, rounding="exact", rule="exact"), ruled), policy="graph")
    assert other.key == "o|||M=3,N≥8@mine|graph"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"op": "p"}, "op: o ≠ p"),
        ({"policy": "graph"}, "policy: eager ≠ graph"),
        ({"dtypes": ("fp32",)}, "dtypes: bf16 ≠ fp32"),
        ({"attrs": (("H", "2"),)}, "H: 1 ≠ 2"),
        ({"attrs": ()}, "H: 1 ≠ -"),
        ({"dims": (Dim(name="M", size=32),)}, "M: M≤16 ≠ M≤32"),
        ({"dims": (Dim(name="M", size=16, rule="other"),)}, "M: M≤16 ≠ M≤16@other"),
        ({"dims": (Dim(name="M", size=16), Dim(name="N", size=1))}, "N: - ≠ N≤1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_differences_name_the_field_and_both_values(change: dict[str, Any], named: str) -> None:
    problem = Problem(op="o", attrs=(("H", "1"),), dtypes=("bf16",), dims=(Dim(name="M", size=16),))
    assert problem.differences(msgspec.structs.replace(problem, **change)) == [named]
    assert problem.differences(problem) == []


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("o", "1 parts"),
        ("o|a|b", "3 parts"),
        ("o|a=1|b|M≤1|eager|x", "6 parts"),
        ("o|a|bf16|M≤1", "'a' is not name=value"),
        ("o||bf16|M16", "'M16'"),
        ("o||bf16|M≤", "'M≤'"),
        ("o||bf16|≤16", "'≤16'"),
        ("o||bf16|M≤1.5", "'M≤1.5'"),
        ("|||", "op ''"),
        ("a b|||", "op 'a b'"),
        ("o||||a b", "policy 'a b'"),
        ("o|=1||", "needs a name"),
        ("o|M=1||M≤1", "twice"),
    ],
)
def test_a_key_that_is_none_is_refused_with_the_part_that_is_wrong(key: str, named: str) -> None:
    for _ in range(2):  # parts are remembered, mistakes are not
        with pytest.raises(ValueError, match=r".") as caught:
            Problem.parse(key)
        assert named in str(caught.value)
        assert "problem key" not in str(caught.value) or repr(key) in str(caught.value)


@given(problems(), problems())
def test_parts_that_two_keys_share_are_read_alike(one: Problem, other: Problem) -> None:
    assume(not {name for name, _ in one.attrs} & {dim.name for dim in other.dims})
    mixed = msgspec.structs.replace(other, attrs=one.attrs, dtypes=one.dtypes)
    for problem in (one, mixed, other):
        assert Problem.parse(problem.key) == problem


@given(TEXT)
def test_any_text_is_a_key_or_a_value_error(text: str) -> None:
    for parse in (Problem.parse, Tactic.parse):
        with contextlib.suppress(ValueError):
            back: Problem | Tactic = parse(text)  # and what was read can be written
            assert parse(str(back)) == back


@pytest.mark.parametrize(
    "wrong",
    [
        {"rounding": "nearest"},
        {"size": -1},
        {"name": ""},
        {"rule": ""},
    ],
    ids=str,
)
def test_a_dimension_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Dim(**{"name": "M", "size": 1, **wrong})


# ----------------------------------------------------------------------------------------------------- environments

FACTS = st.dictionaries(TEXT, TEXT, min_size=1, max_size=5)


@given(FACTS, st.randoms(use_true_random=False))
def test_a_digest_depends_on_the_hard_fields_and_not_on_their_order(facts: dict[str, str], rng: Any) -> None:
    shuffled = list(facts.items())
    rng.shuffle(shuffled)
    digest = Environment(hard=facts).digest
    assert digest == Environment(hard=dict(shuffled), soft={"load": "1"}).digest
    assert len(digest) == 16
    assert set(digest) <= set("0123456789abcdef")


@given(FACTS, FACTS)
def test_a_digest_tells_environments_apart_as_their_differences_do(one: dict[str, str], other: dict[str, str]) -> None:
    mine, theirs = Environment(hard=one), Environment(hard=other)
    assert (mine.digest == theirs.digest) == (one == other)
    assert (mine.differences(theirs) == []) == (one == other)


def test_a_digest_is_the_same_in_every_version() -> None:
    """Caches are found by it: a change of the recipe would lose them all."""
    assert Environment(hard={"device": "cpu", "cores": "8"}).digest == "df79feaeb8511438"


def test_differences_of_environments_are_named_by_field() -> None:
    one = Environment(hard={"isa": "avx2", "cores": "8", "same": "1"}, soft={"torch": "2.9"})
    other = Environment(hard={"isa": "avx512f", "l3": "1", "same": "1"}, soft={"torch": "2.13"})
    assert one.differences(other) == ["cores: 8 ≠ -", "isa: avx2 ≠ avx512f", "l3: - ≠ 1"]
    assert one.soft_differences(other) == ["torch: 2.9 ≠ 2.13"]


def test_an_environment_without_a_hard_field_is_refused() -> None:
    with pytest.raises(ValueError, match="hard field"):
        Environment(hard={}, soft={"load": "1"})


# --------------------------------------------------------------------------------------- verdicts, plans and phases

VERDICT: dict[str, Any] = {
    "problem": "o|a=1|bf16|M≤16",
    "winner": "fast[b=2]",
    "status": "proven",
    "speedup": 1.5,
    "low": 1.4,
    "high": 1.6,
    "seconds": 1e-3,
    "frontier": (Member(tactic="fast[b=2]", ratio=1.0, low=1.0, high=1.0),),
    "offered": {"fast": Offered(version="1", space="s"), "default": Offered(version="0", space="")},
}


def test_a_verdict_reads_back_from_json() -> None:
    verdict = Verdict(**VERDICT, ties=("default",), rejected=(Rejected(tactic="x", reason="timeout", detail="5 s"),))
    assert msgspec.json.decode(msgspec.json.encode(verdict), type=Verdict) == verdict


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"problem": "nonsense"}, "nonsense"),
        ({"winner": "fast["}, "fast["),
        ({"speedup": 1.7}, "1.7"),
        ({"speedup": 1.3}, "1.3"),
        ({"low": 0.0}, "interval"),
        ({"high": math.inf}, "interval"),
        ({"speedup": math.nan}, "interval"),
        ({"frontier": ()}, "frontier"),
        ({"winner": "default"}, "frontier"),
        ({"offered": {}}, "fast"),
        ({"seconds": -1.0}, "duration"),
        ({"seconds": math.inf}, "duration"),
        ({"measured": math.nan}, "duration"),
        ({"loss": -0.01}, "-0.01"),
        ({"loss": math.inf}, "loss"),
        ({"loss": math.nan}, "loss"),
        ({"space": 2, "seen": 3}, "3 tactics seen of 2"),
        ({"space": 2, "seen": -1}, "-1 tactics"),
    ],
    ids=str,
)
def test_a_verdict_that_cannot_be_is_refused(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Verdict(**{**VERDICT, **wrong})
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"ratio": 0.0, "low": 0.0}, {"ratio": 2.0}, {"high": math.inf}, {"bytes": -1}, {"tactic": "a["}], ids=str
)
def test_a_member_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Member(**{"tactic": "a", "ratio": 1.0, "low": 1.0, "high": 1.0, **wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": (1.0,)},
        {"samples": (1.0, 0.0)},
        {"samples": (1.0, math.nan)},
        {"samples": (1.0, math.inf)},
        {"tactic": "["},
    ],
    ids=str,
)
def test_timings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Timed(**{"tactic": "a", "samples": (1.0, 2.0), "rounds": (0, 1), **wrong})


def test_every_reason_has_a_class_of_t4() -> None:
    known = {"compile", "runtime", "timeout", "correctness", "constraints"}
    classes = {reason: Rejected(tactic="a", reason=reason).t4 for reason in get_args(Reason)}
    assert set(classes.values()) <= known
    assert all(classes[reason] == reason for reason in known)


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(1.01, 1.2, "faster"), (0.8, 0.99, "slower"), (0.9, 1.1, "no difference"), (1.0, 1.0, "no difference")],
)
def test_an_interval_says_what_it_shows(low: float, high: float, says: str) -> None:
    assert outcome(low, high) == says
    assert Overall(speedup=low, speedup_low=low, speedup_high=high).outcome == says


PHASE: dict[str, Any] = {
    "phase": "decode",
    "batch": 16,
    "tokens": 1,
    "default_ms": 2.0,
    "tuned_ms": 1.0,
    "speedup": 2.0,
    "speedup_low": 1.9,
    "speedup_high": 2.1,
}


def test_a_phase_is_named_by_what_varies_in_it() -> None:
    assert Phase(**PHASE).name == "decode_16"
    assert Phase(**{**PHASE, "phase": "prefill", "batch": 1, "tokens": 512}).name == "prefill_512"
    assert Phase(**PHASE).outcome == "faster"


@pytest.mark.parametrize(
    "wrong",
    [
        {"speedup": 2.2},
        {"speedup_low": 0.0},
        {"speedup_high": math.inf},
        {"default_ms": math.nan},
        {"tuned_ms": -1.0},
    ],
    ids=str,
)
def test_a_phase_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="decode"):
        Phase(**{**PHASE, **wrong})


def test_a_copy_of_a_plan_differs_in_what_was_asked_for_alone() -> None:
    plan = Plan(model="m", fingerprint="f", tactics={"o|||": "default"}, phases=(Phase(**PHASE),))
    changed = plan.replace(active=False)
    assert (changed.active, plan.active) == (False, True)
    assert changed.replace(active=True) == plan
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan
    with pytest.raises(AttributeError):
        plan.active = False  # type: ignore[misc]


def test_a_cache_holds_a_verdict_under_its_own_key_only() -> None:
    verdict, where = Verdict(**VERDICT), Environment(hard={"device": "cpu"})
    assert CacheDocument(schema=1, environment=where, verdicts={verdict.problem: verdict}).verdicts
    with pytest.raises(ValueError, match="is about"):
        CacheDocument(schema=1, environment=where, verdicts={"o|||": verdict})


def test_lines_of_a_run_are_validated_too() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        TrialLine(problem="nonsense", trial=Rejected(tactic="a", reason="memory"))
    with pytest.raises(ValueError, match="duration"):
        Footer(finished="now", seconds=-1.0, problems=0)
