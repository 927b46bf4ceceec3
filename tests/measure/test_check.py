"""Correctness: what lies within the tolerance of its dtype passes; everything else is refused, in a class and in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebook.measure import Case, Finding, Passed, Reference, check, compare, failure

#: By dtype: a relative change of every value that is rounding, and one that is not.
ROUNDING = {
    torch.bfloat16: (4e-3, 0.1),
    torch.float16: (5e-4, 0.03),
    torch.float32: (1e-6, 1e-3),
    torch.float64: (1e-12, 1e-7),
}
DTYPES = list(ROUNDING)


class Clock:
    """Each look is a tenth of a second after the last one."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waited = 0

    def clock(self) -> float:
        self.now += 0.1
        return self.now

    def synchronize(self) -> None:
        self.waited += 1


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tensor(rows: int = 4, columns: int = 8, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def reference(function: Callable[..., Any], *sets: tuple[Any, ...], constants: Sequence[Any] = ()) -> Reference:
    """What `function`, the default, gives on these arguments. An output must not lie in an input's memory."""
    return Reference.of([Case(args, function(*args), f"case {i}") for i, args in enumerate(sets)], constants)


def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def words(found: Finding | Passed, reason: str = "correctness") -> str:
    assert isinstance(found, Finding), found
    assert found.reason == reason
    assert found.detail
    assert "\n" not in found.detail
    return found.detail


SHAPES = st.one_of(
    st.tuples(st.integers(1, 5), st.integers(1, 9)),
    st.tuples(st.integers(1, 9)),
    st.just(()),
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 4)),
)


@settings(max_examples=40)
@given(SHAPES, st.sampled_from(DTYPES), st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_what_differs_by_rounding_passes(shape: tuple[int, ...], dtype: torch.dtype, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    expected = (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    small = ROUNDING[dtype][0]
    got = (expected.double() * (1 + small * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1))).to(
        dtype
    )
    found = compare(got, expected)
    assert isinstance(found, float), found
    assert 0 <= found <= 3 * small
    assert compare(expected.clone(), expected) == 0.0


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 9), st.sampled_from(DTYPES), st.integers(0, 1000), st.data())
def test_one_wrong_row_is_found_and_named(
    rows: int, columns: int, dtype: torch.dtype, seed: int, data: st.DataObject
) -> None:
    expected = tensor(rows, columns, torch.float32, seed)
    expected = (expected + expected.sign()).to(dtype)  # no value near zero
    row = data.draw(st.integers(0, rows - 1))
    got = expected.clone()
    got[row] = (got[row].double() * (1 + 2 * ROUNDING[dtype][1])).to(dtype)
    found = compare(got, expected)
    assert isinstance(found, str)
    assert f"row {row}" in found


#: By dtype: a change of one element that is too much, though the norm of a row of 16384 hardly moves.
TOO_MUCH = {torch.bfloat16: 0.15, torch.float16: 0.05, torch.float32: 2.4e-3, torch.float64: 1.2e-7}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("row", [0, 2])
def test_one_wrong_element_in_a_long_row_is_found(dtype: torch.dtype, row: int) -> None:
    expected = tensor(3, 16384, dtype)
    expected[row, 5000] = 0
    got = expected.clone()
    got[row, 5000] += TOO_MUCH[dtype]
    found = compare(got, expected)
    assert isinstance(found, str)
    assert "element" in found
    got[row, 5000] = TOO_MUCH[dtype] / 10
    assert isinstance(compare(got, expected), float)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_where_the_defaults_is_fails(dtype: torch.dtype, bad: float) -> None:
    expected = tensor(dtype=dtype)
    got = expected.clone()
    got[2, 3] = bad
    found = compare(got, expected)
    assert isinstance(found, str)
    assert "NaN or infinite" in found
    assert "row 2" in found
    assert isinstance(compare(expected, got), str), "the other way round: the default says NaN, the tactic makes one up"
    assert compare(got.clone(), got) == 0.0, "where the default gives NaN or an infinity, that is what is right"


def test_an_infinity_of_the_other_sign_fails() -> None:
    expected = tensor()
    expected[0, 0] = math.inf
    got = expected.clone()
    got[0, 0] = -math.inf
    assert isinstance(compare(got, expected), str)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_values_near_the_ends_of_a_dtypes_range_are_compared(dtype: torch.dtype, size: float) -> None:
    """Squares and differences of such values do not fit into the dtype that they have."""
    size = {torch.float16: {1e-30: 6e-5, 1.0: 1.0, 1e30: 6e4}[size]}.get(dtype, size)
    expected = tensor(dtype=dtype).sign() * size
    assert compare(expected.clone(), expected) == 0.0
    assert isinstance(compare(-expected, expected), str)
    assert isinstance(compare(expected * 0.9, expected), str)


def test_expected_values_are_left_as_they_are() -> None:
    for dtype in DTYPES:
        expected = tensor(dtype=dtype)
        before, got = expected.clone(), expected.clone()
        got[0, 0] += 100 * TOO_MUCH[dtype]
        compare(got, expected)
        assert torch.equal(expected, before)


def test_an_output_that_is_not_contiguous_where_the_defaults_is_fails() -> None:
    expected = tensor()
    turned = expected.t().contiguous().t()
    assert "strides" in str(compare(turned, expected))
    assert compare(expected, turned) == 0.0
    assert compare(turned, turned) == 0.0


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool], ids=str)
def test_whole_numbers_must_be_equal(dtype: torch.dtype) -> None:
    expected = torch.tensor([[0, 1, 1], [1, 0, 1]], dtype=dtype)
    got = expected.clone()
    assert compare(got, expected) == 0.0
    got[1, 1] = 1
    assert compare(got, expected) == "values differ"


def test_an_empty_output_and_rows_of_zeros_pass() -> None:
    assert compare(torch.empty(0, 4), torch.empty(0, 4)) == 0.0
    assert compare(torch.zeros(2, 3), torch.zeros(2, 3)) == 0.0
    assert isinstance(compare(torch.ones(2, 3), torch.zeros(2, 3)), str)


class Pair(NamedTuple):
    out: torch.Tensor
    number: int


@pytest.mark.parametrize(
    ("got", "expected", "said"),
    [
        (None, tensor(), "nothing"),
        ({"out": tensor()}, tensor(), "dict"),
        (tensor().numpy(), tensor(), "ndarray"),
        ([tensor()], tensor(), "list"),
        (1.0, tensor(), "float"),
        (tensor(4, 7), tensor(), "shape (4, 7), not (4, 8)"),
        (tensor().reshape(8, 4), tensor(), "shape (8, 4), not (4, 8)"),
        (tensor()[0], tensor(), "shape (8,), not (4, 8)"),
        (tensor().double(), tensor(), "dtype torch.float64, not torch.float32"),
        (tensor(), (tensor(), tensor()), "not 2 values"),
        ((tensor(),), (tensor(), tensor()), "not 2 values"),
        ((tensor(), tensor(3)), (tensor(), tensor()), "output 1: shape (3, 8)"),
        ((tensor(), 2), (tensor(), 1), "output 1: returned 2, not 1"),
        (Pair(tensor(), 2), Pair(tensor(), 1), "output 1"),
        ({"out": 1}, {"out": 2}, "not {'out': 2}"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_kind_of_output_is_refused_in_words(got: Any, expected: Any, said: str) -> None:
    found = compare(got, expected)
    assert isinstance(found, str)
    assert said in found
    args = (torch.zeros(1),)
    detail = words(check(lambda _: got, Reference.of([Case(args, expected, "M=1")], ()), Clock()))
    assert detail.startswith("M=1: ")
    assert said in detail


@pytest.mark.parametrize(
    "got",
    [
        tensor().to_sparse(),
        tensor().to_mkldnn(),
        tensor().to("meta"),
        torch.nested.nested_tensor([torch.zeros(8)] * 4, layout=torch.jagged),
        {"out": tensor()},
        np.float32(2),
        object(),
    ],
    ids=["sparse", "mkldnn", "meta", "nested", "dict", "numpy", "object"],
)
@pytest.mark.parametrize(
    "expected",
    [tensor(), {"in": 1}, np.zeros(3), 1.0, None],
    ids=["tensor", "dict", "numpy", "float", "None"],
)
def test_an_odd_output_is_a_finding_and_no_exception(got: Any, expected: Any) -> None:
    found = check(lambda _: got, Reference.of([Case((torch.zeros(1),), expected, "M=1")], ()), Clock())
    assert isinstance(found, Finding)
    assert found.detail


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "make", [torch.empty_like, lambda x: x.new_empty(x.shape), lambda x: torch.empty(4, 8).to(x.dtype)]
)
def test_an_output_that_is_not_written_everywhere_is_found(
    dtype: torch.dtype, make: Callable[..., torch.Tensor]
) -> None:
    def forgetful(x: torch.Tensor) -> torch.Tensor:
        out = make(x)
        out[:-1] = x[:-1] * 2
        return out

    x = torch.zeros(4, 8, dtype=dtype)  # what fresh memory often holds is right by chance
    assert "row 3" in words(check(forgetful, reference(double, (x,)), Clock()))
    assert isinstance(check(double, reference(double, (x,)), Clock()), Passed)


@pytest.mark.parametrize("wished", [True, False])
def test_the_filling_does_not_depend_on_the_users_settings_and_leaves_them(
    wished: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    deterministic: Any = torch.utils.deterministic
    monkeypatch.setattr(deterministic, "fill_uninitialized_memory", wished)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    seen = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(bool(torch.empty(64).isnan().all()))
        raise RuntimeError("no")

    words(check(look, reference(double, (tensor(),)), Clock()), "runtime")
    assert seen == [True]
    after = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    assert after == before
    assert deterministic.fill_uninitialized_memory is wished


def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x + y


def _scribble(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = x + y
    y[0, 0] = 7
    return out


def _reshape(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = x + y
    y.t_()
    return out


def _empty(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = x + y
    y.resize_(0)
    return out


def _unsqueeze(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = x + y
    y.unsqueeze_(0)
    return out


@pytest.mark.parametrize("call", [_scribble, lambda x, y: y.add_(x), _reshape, _empty, _unsqueeze])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64], ids=str)
def test_an_argument_that_is_changed_is_found_and_named(call: Callable[..., Any], dtype: torch.dtype) -> None:
    args = ((10 * tensor()).to(dtype), (10 * tensor(seed=1)).to(dtype))
    before = [value.clone() for value in args]
    detail = words(check(call, reference(add, args), Clock()))
    assert "argument 1 was changed" in detail
    assert all(torch.equal(a, b) for a, b in zip(args, before, strict=True)), "it works on copies"


def test_an_argument_with_nan_in_it_is_not_changed() -> None:
    x = tensor()
    x[0, 0] = math.nan
    assert isinstance(check(double, reference(double, (x,)), Clock()), Passed)


def _one_bit(w: torch.Tensor) -> None:
    w.view(torch.uint8).view(-1)[5] ^= 1


def _swap_rows(w: torch.Tensor) -> None:
    w.copy_(w.flip(0).clone())


def _two_ways(w: torch.Tensor) -> None:
    """Two changes that cancel out in any sum."""
    bits = w.view(torch.uint8).view(-1)
    assert bits[6] != bits[14]
    bits[6], bits[14] = bits[14].item(), bits[6].item()


def _transpose(w: torch.Tensor) -> None:
    w.t_()


def _replace(w: torch.Tensor) -> None:
    w.data = torch.zeros_like(w)


@pytest.mark.parametrize("change", [_one_bit, _swap_rows, _two_ways, _transpose, _replace])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.float64], ids=str)
def test_weights_that_are_changed_are_found(change: Callable[[torch.Tensor], None], dtype: torch.dtype) -> None:
    """The output is right: the change comes after it, as when a kernel packs its weights in place."""
    w = (100 * tensor(8, 8, seed=3)).abs().to(dtype)
    x = torch.ones(2, 8)

    def call(x: torch.Tensor) -> torch.Tensor:
        if not done:
            done.append(True)
            change(w)
        return x * 2

    done: list[bool] = []
    args = reference(double, (x,), constants=(w,))
    assert "weights were changed" in words(check(call, args, Clock()))


def test_weights_that_are_left_alone_pass_whatever_their_layout() -> None:
    odd = tensor(5, 7).to(torch.bfloat16)
    weights = (
        odd,
        odd.t(),
        odd[1:, ::2],
        torch.zeros(0),
        torch.tensor(1.5),
        None,
        3,
        torch.tensor([math.nan]),
        odd.bool(),
    )
    assert isinstance(check(double, reference(double, (tensor(),), constants=weights), Clock()), Passed)


@pytest.mark.parametrize("cases", [1, 3])
def test_an_output_that_lies_in_the_same_memory_at_each_call_is_refused(cases: int) -> None:
    buffer = torch.zeros(4, 8)

    def call(x: torch.Tensor) -> torch.Tensor:
        return buffer[: len(x)].copy_(x * 2)

    sets = [(tensor(4, seed=seed),) for seed in range(cases)]
    words(check(call, reference(double, *sets), Clock()))
    pair = reference(lambda x: (x * 2, x * 2), *sets)
    words(check(lambda x: (x * 2, call(x)), pair, Clock()))


@pytest.mark.parametrize(
    ("error", "reason", "said"),
    [
        (RuntimeError("bad shape\nand a trace"), "runtime", "RuntimeError: bad shape"),
        (ValueError(), "runtime", "ValueError: no message"),
        (MemoryError(), "memory", "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "memory", "allocate"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "memory", "CUDA out of memory"),
        (AssertionError("x"), "runtime", "AssertionError: x"),
    ],
)
def test_what_a_tactic_raises_is_a_finding(error: Exception, reason: str, said: str) -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        raise error

    detail = words(check(call, reference(double, (tensor(),)), Clock()), reason)
    assert said in detail
    assert detail.startswith("case 0: ")
    assert failure(error, "there").detail == detail.replace("case 0", "there")


def test_an_interruption_is_not_a_finding() -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(call, reference(double, (tensor(),)), Clock())


def test_every_case_is_tried_and_the_first_that_fails_is_named() -> None:
    sets = [(tensor(rows, seed=rows),) for rows in (1, 2, 3)]
    assert "case 2: " in words(check(lambda x: x * 2 if len(x) < 3 else x, reference(double, *sets), Clock()))
    seen = []

    def call(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return x * 2

    assert isinstance(check(call, reference(double, *sets), Clock()), Passed)
    assert set(seen) == {1, 2, 3}


def test_what_passed_tells_the_worst_error_and_how_long_the_last_call_took() -> None:
    clock = Clock()
    sets = [(tensor(seed=seed),) for seed in range(2)]
    off = iter([1 + 1e-5, 1 + 2e-6, 1.0, 1.0])

    def call(x: torch.Tensor) -> torch.Tensor:
        return x * 2 * next(off)

    found = check(call, reference(double, *sets), clock)
    assert isinstance(found, Passed)
    assert found.error == pytest.approx(1e-5, rel=0.05)
    assert found.seconds == pytest.approx(0.1)
    assert clock.waited >= 4, "waits before and after each call"


class Stopwatch:
    """A clock that calls put forward."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def synchronize(self) -> None:
        pass


@pytest.mark.parametrize(
    ("takes", "calls", "refused"),
    [
        ([2.0], 2, True),  # forty times the default's time, and again: nothing else is tried
        ([2.0, 0.06, 0.06], 3, False),  # only the first call was slow, which may load something
        ([0.4], 2, False),  # eight times: let the race say
    ],
)
def test_a_tactic_that_takes_far_too_long_twice_is_not_checked_further(
    takes: list[float], calls: int, refused: bool
) -> None:
    clock = Stopwatch()
    made: list[torch.Tensor] = []

    def slow(x: torch.Tensor) -> torch.Tensor:
        clock.now += takes[min(len(made), len(takes) - 1)]
        made.append(x)
        return x * 2

    cases = [Case((x,), x * 2, f"M={len(x)}", seconds=0.05) for x in (tensor(2), tensor(4))]
    found = check(slow, Reference.of(cases, ()), clock)
    assert len(made) == calls
    if refused:
        assert isinstance(found, Finding)
        assert found.reason == "timeout"
        assert found.detail == "M=2: takes 2 s, 40 times the default"
    else:
        assert isinstance(found, Passed)


@pytest.mark.parametrize("seconds", [None, 1e-4])
def test_short_calls_and_inputs_that_are_no_live_ones_may_take_their_time(seconds: float | None) -> None:
    clock = Stopwatch()

    def slow(x: torch.Tensor) -> torch.Tensor:
        clock.now += 0.09 if seconds else 100.0
        return x * 2

    x = tensor(2)
    assert isinstance(check(slow, Reference.of([Case((x,), x * 2, "M=2", seconds=seconds)], ()), clock), Passed)
