"""Who tunes what: every problem by one rank that met it, the same whoever reckons, and no device left idle beside a busy one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunebook.tuner._ranks._share import Report, Seen, Shares, budgets, share

KEYS = [f"demo::a|x=1|fp32|M≤{2**i}" for i in range(6)]
WEIGHTS = st.floats(0, 1e3)

seen = st.builds(
    Seen, weight=WEIGHTS, called=st.booleans(), open=st.just(True), default=st.just("1"), together=st.just(False)
)
reports = st.lists(
    st.dictionaries(st.sampled_from(KEYS), seen).map(lambda problems: Report(problems, {})), min_size=1, max_size=5
)


def shared(found: list[Report], devices: list[str]) -> Shares:
    return share([f"rank {place}" for place in range(len(found))], found, devices, 0)


@given(found=reports, data=st.data())
def test_each_problem_is_tuned_once_by_a_rank_that_met_it(found: list[Report], data: st.DataObject) -> None:
    devices = data.draw(st.lists(st.sampled_from("ab"), min_size=len(found), max_size=len(found)))
    shares = shared(found, devices)
    assert shares == shared(found, devices)
    assert shares.tuned_by.keys() == {key for one in found for key in one.problems}
    for key, place in shares.tuned_by.items():
        assert key in found[place].problems
        called = [one.problems[key].called for one in found if key in one.problems]
        assert found[place].problems[key].called or not any(called)
        assert shares.weights[key] == max(one.problems[key].weight for one in found if key in one.problems)
    given_out: dict[str, float] = {}
    for place, device in enumerate(devices):
        together, mine = budgets(shares, devices, place, 60.0)
        assert together == 0.0
        assert mine is not None
        given_out[device] = given_out.get(device, 0.0) + mine
        assert budgets(shares, devices, place, None) == (None, None)
    busy = {devices[place] for place in shares.tuned_by.values()}
    for device, seconds in given_out.items():
        assert abs(seconds - (60.0 if device in busy else 0.0)) < 1e-6


@given(weights=st.lists(WEIGHTS, min_size=1, max_size=6), size=st.integers(2, 4))
def test_the_heaviest_rank_is_no_heavier_than_it_has_to_be(weights: list[float], size: int) -> None:
    """Of what everybody met: a device ends at most one problem after the average."""
    problems = {key: Seen(w, True, True, "1", False) for key, w in zip(KEYS, weights, strict=False)}
    found = [Report(problems, {})] * size
    shares = shared(found, [str(place) for place in range(size)])
    loads = [sum(shares.weights[key] for key, p in shares.tuned_by.items() if p == place) for place in range(size)]
    assert max(loads) <= sum(weights) / size + max(weights) + 1e-3


def test_what_communicates_is_for_all_ranks_or_none() -> None:
    both, one = Seen(1.0, True, True, "1", True), Seen(2.0, True, True, "1", True)
    shares = shared([Report({KEYS[0]: both, KEYS[1]: one}, {}), Report({KEYS[0]: both}, {})], ["a", "a"])
    assert shares.together == [KEYS[0]]
    assert shares.left == {KEYS[1]: "its calls communicate, and rank 1 did not meet it"}
    assert shares.tuned_by == {}
    assert budgets(shares, ["a", "a"], 0, 60.0) == (60.0, 0.0)
