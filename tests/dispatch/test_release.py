"""Released weights: their memory goes, packed copies serve, and they come back bit for bit as soon as anything reads them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tunebook as tb
from tunebook.dispatch import OPS, Binding, Scope, is_released, releasable_bytes
from tunebook.errors import OpError
from tunebook.records import DEFAULT, Problem, Tactic

FLIPPED = Tactic.parse("flipped[by=1]")
TWICE = Tactic.parse("flipped[by=2]")
LOST = Tactic.parse("lost")


@pytest.fixture
def times() -> Iterator[Any]:
    """``x @ w``; `flipped` keeps the weight's columns in another order and gives them back, `lost` cannot."""

    @tb.op("release_times", buckets={"x": {0: tb.pow2(max=64)}}, constants=("w",), lead="x")
    def times(x: Tensor, w: Tensor) -> Tensor:
        return x @ w

    def flip(w: Tensor, *, by: int) -> Tensor:
        return w.flip(1) if by == 1 else w.flip(0)

    @times.runner(
        "flipped",
        {"by": (1, 2)},
        prepare=flip,
        restore=lambda prepared, *, last: (prepared.flip(1),),
        layout=lambda *, by: f"by-{by}",
        bits=lambda *, by: "columns" if by == 1 else "rows",
    )
    def flipped(x: Tensor, prepared: Tensor, *, by: int) -> Tensor:
        return (x @ prepared).flip(1) if by == 1 else x.flip(1) @ prepared

    @times.runner("lost", prepare=lambda w: w.sum())
    def lost(x: Tensor, prepared: Tensor) -> Tensor:
        return x.sum() * prepared

    yield times
    del OPS["release_times"]


def bound(times: Any, weight: Tensor) -> tuple[Binding, Scope]:
    scope = Scope("test")
    binding = times.bind(weight, scope=scope)
    binding.releasable = releasable_bytes((weight,))
    return binding, scope


def weight(rows: int = 3, columns: int = 5) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns), requires_grad=False)


def test_a_released_weight_has_no_memory_and_its_layout_serves_every_shape(times: Any) -> None:
    w = weight()
    before = w.detach().clone()
    binding, scope = bound(times, w)
    call = binding.caller()
    scope.install({"release_times|x.1=3,w.0=3,w.1=5|fp32|x.0≤4": FLIPPED})
    assert binding.releasable == 60
    binding.release(FLIPPED)
    assert binding.released
    assert is_released(w)
    assert w.untyped_storage().nbytes() == 4
    for rows in (4, 3, 1, 40, 1000):  # its bucket, inside it, buckets that were never tuned, beyond the largest
        x = torch.randn(rows, 3)
        assert torch.allclose(call(x), x @ before)
    assert binding.released
    assert scope.counts["bucket"] == 4
    binding.restore()
    assert not binding.released
    assert type(w) is nn.Parameter
    assert torch.equal(w, before)


def test_what_was_never_tuned_is_served_by_the_nearest_size(times: Any) -> None:
    w = weight()
    binding, scope = bound(times, w)
    key = "release_times|x.1=3,w.0=3,w.1=5|fp32|x.0≤{}"
    scope.install({key.format(1): FLIPPED, key.format(64): TWICE, key.format(2): DEFAULT})
    fits = lambda tactic: tactic != DEFAULT  # noqa: E731
    assert scope.nearest(Problem.parse(key.format(4)), fits) == FLIPPED
    assert scope.nearest(Problem.parse(key.format(32)), fits) == TWICE
    assert scope.nearest(Problem.parse(key.format(4)), lambda tactic: tactic == TWICE) == TWICE
    assert scope.nearest(Problem.parse("release_times|x.1=9,w.0=9,w.1=5|fp32|x.0≤4"), fits) is None
    binding.release(FLIPPED)  # the other layout is not there: it does not serve
    assert torch.allclose(binding.caller()(torch.ones(32, 3)), torch.ones(32, 3) @ w.detach())


READS: dict[str, Callable[[nn.Linear], Any]] = {
    "add": lambda m: m.weight + 1,
    "product": lambda m: nn.functional.linear(torch.ones(1, 5), m.weight),
    "index": lambda m: m.weight[0],
    "cat": lambda m: torch.cat([m.weight, m.weight]),
    "data": lambda m: m.weight.data,
    "stride": lambda m: m.weight.stride(),
    "repr": lambda m: repr(m.weight),
    "to": lambda m: m.weight.to(torch.bfloat16),
    "state_dict": lambda m: m.state_dict(),
    "load_state_dict": lambda m: m.load_state_dict({"weight": torch.ones(3, 5)}),
    "deepcopy": lambda m: copy.deepcopy(m),
    "pickle": lambda m: pickle.dumps(m.weight),
    "save": lambda m: torch.save(m.weight, io.BytesIO()),
    "forward": lambda m: m(torch.ones(1, 5)),
    "convert": lambda m: m.to(torch.float64),
    "write": lambda m: m.weight.mul_(1),
    "assign": lambda m: setattr(m.weight, "data", torch.zeros(3, 5)),
}


@pytest.mark.parametrize("read", READS)
def test_whatever_reads_a_released_weight_finds_its_values(times: Any, read: str) -> None:
    module = nn.Linear(5, 3, bias=False).requires_grad_(False)
    before, expected = module.weight.detach().clone(), READS[read](copy.deepcopy(module))
    binding, _ = bound(times, module.weight)
    binding.release(FLIPPED)
    got = READS[read](module)
    assert not binding.released
    assert type(module.weight) is nn.Parameter
    if isinstance(expected, Tensor):
        assert torch.equal(got, expected)
    if read not in ("load_state_dict", "assign", "convert"):
        assert torch.equal(module.weight, before)
    if isinstance(got, nn.Module):
        assert type(got.weight) is nn.Parameter


def test_asking_about_a_released_weight_does_not_bring_it_back(times: Any) -> None:
    w = weight()
    binding, _ = bound(times, w)
    binding.release(FLIPPED)
    assert (w.shape, w.dtype, w.device.type, w.numel(), len(w), w.ndim) == ((3, 5), torch.float32, "cpu", 15, 3, 2)
    assert not w.requires_grad
    assert not w.requires_grad_(False).requires_grad
    assert w.is_floating_point()
    assert isinstance(w, nn.Parameter)
    assert {w: 1}[w] == 1
    assert binding.released


def test_an_inference_tensor_is_released_and_restored_too(times: Any) -> None:
    with torch.inference_mode():
        w = weight()
    before = w.clone()
    binding, _ = bound(times, w)
    binding.release(FLIPPED)
    assert binding.released
    assert torch.equal(w, before)
    assert not binding.released


def test_a_layout_made_later_is_made_from_the_kept_one(times: Any) -> None:
    w = weight()
    before = w.detach().clone()
    binding, _ = bound(times, w)
    binding.release(FLIPPED)
    call = binding.bound(TWICE)
    assert binding.released
    assert binding.prepared.layouts == ("flipped:by-1", "flipped:by-2")
    assert torch.allclose(call(torch.ones(2, 3)), torch.ones(2, 3) @ before)


def test_weights_that_are_replaced_are_followed(times: Any) -> None:
    w = weight()
    binding, scope = bound(times, w)
    scope.install({"release_times|x.1=3,w.0=3,w.1=5|fp32|x.0≤4": FLIPPED})
    binding.release(FLIPPED)
    other = weight()
    binding.rebind((other,))
    assert not binding.released
    assert not is_released(w)
    assert torch.allclose(binding.caller()(torch.ones(4, 3)), torch.ones(4, 3) @ other)


def test_closing_gives_the_weights_back(times: Any) -> None:
    w = weight()
    before = w.detach().clone()
    binding, _ = bound(times, w)
    binding.release(FLIPPED)
    binding.release(FLIPPED)  # twice is once
    binding.close()
    assert torch.equal(w, before)
    assert binding.prepared.bytes == 0


def test_what_cannot_be_released_is_refused_by_name(times: Any) -> None:
    w = weight()
    binding, _ = bound(times, w)
    with pytest.raises(OpError, match="release_times: lost cannot make the original weights again"):
        binding.release(LOST)
    with pytest.raises(OpError, match="default cannot make the original weights again"):
        binding.release(DEFAULT)
    binding.releasable = 0
    with pytest.raises(OpError, match="used elsewhere too"):
        binding.release(FLIPPED)
    assert not is_released(w)


def test_only_plain_parameters_with_a_storage_of_their_own_are_releasable() -> None:
    whole = torch.zeros(4, 4)
    assert releasable_bytes((nn.Parameter(torch.zeros(2, 2)), None, "silu")) == 16
    assert releasable_bytes((torch.zeros(2, 2),)) == 0
    assert releasable_bytes((nn.Parameter(whole[:2]),)) == 0
    assert releasable_bytes((nn.Parameter(whole.t()),)) == 0 or whole.t().is_contiguous()


def test_hooks_that_make_no_sense_alone_are_refused(times: Any) -> None:
    with pytest.raises(OpError, match="restore= needs prepare="):
        times.runner("alone", restore=lambda prepared, *, last: ())(lambda x, w: x)
    with pytest.raises(OpError, match="convert= needs restore="):
        times.runner("alone", prepare=lambda w: w, convert=lambda w: w)(lambda x, w: x)


def test_a_conversion_in_place_is_preferred_and_a_refused_one_falls_back(times: Any) -> None:
    made: list[str] = []

    def convert(w: Tensor, *, fits: bool) -> Tensor | None:
        made.append(f"convert {fits}")
        return w.detach().flip(1) if fits else None

    def prepare(w: Tensor, *, fits: bool) -> Tensor:
        made.append(f"prepare {fits}")
        return w.detach().flip(1)

    restore = lambda prepared, *, last: (prepared.flip(1),)  # noqa: E731
    times.runner("placed", {"fits": (True, False)}, prepare=prepare, convert=convert, restore=restore)(
        lambda x, prepared, *, fits: (x @ prepared).flip(1)
    )
    for fits, expected in (("true", ["convert True"]), ("false", ["convert False", "prepare False"])):
        w = weight()
        before = w.detach().clone()
        binding, _ = bound(times, w)
        binding.release(Tactic.parse(f"placed[fits={fits}]"))
        assert made == expected
        assert torch.equal(w, before)
        made.clear()


def test_a_runner_may_bind_what_it_serves_once(times: Any) -> None:
    bound_times: list[int] = []

    def bind(w: Tensor, *, power: int) -> Callable[[Tensor], Tensor]:
        bound_times.append(power)
        return lambda x: x @ w

    times.runner("binds", {"power": (3,)}, bind=bind)(lambda x, w, *, power: x @ w)
    w = weight()
    binding, scope = bound(times, w)
    scope.install({"release_times|x.1=3,w.0=3,w.1=5|fp32|x.0≤4": Tactic.parse("binds[power=3]")})
    call = binding.caller()
    for _ in range(3):
        assert torch.equal(call(torch.ones(4, 3)), torch.ones(4, 3) @ w)
    assert bound_times == [3]


def test_calls_are_counted_by_problem_while_recording(times: Any) -> None:
    binding, scope = bound(times, weight())
    call = binding.caller()
    call(torch.ones(4, 3))
    scope.record(True)
    for rows in (4, 3, 1):
        call(torch.ones(rows, 3))
    scope.record(False)
    call(torch.ones(4, 3))
    key = "release_times|x.1=3,w.0=3,w.1=5|fp32|x.0≤{}"
    assert scope.recorded == {key.format(4): 2, key.format(1): 1}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([torch.float32, torch.bfloat16]), st.booleans())
@pytest.mark.parametrize("runner", ["torch_transposed", "onednn"])
def test_shipped_layouts_give_linear_weights_back_bit_for_bit(
    runner: str, rows: int, columns: int, dtype: torch.dtype, biased: bool
) -> None:
    module = nn.Linear(columns, rows, bias=biased, dtype=dtype).requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    binding = tb.kernels.linear.bind(module.weight, module.bias, scope=Scope("test"))
    binding.releasable = releasable_bytes((module.weight, module.bias))
    binding.release(tb.kernels.linear.runners[runner].combinations[0])
    assert binding.released
    after = module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("runner", ["torch_transposed", "onednn"])
def test_shipped_layouts_give_experts_weights_back_bit_for_bit(runner: str) -> None:
    gate_up, down = (nn.Parameter(torch.randn(shape), requires_grad=False) for shape in ((3, 8, 5), (3, 5, 4)))
    before = gate_up.clone(), down.clone()
    binding = tb.kernels.experts.bind(gate_up, down, "silu", scope=Scope("test"))
    binding.releasable = releasable_bytes((gate_up, down))
    binding.release(tb.kernels.experts.runners[runner].combinations[0])
    assert is_released(gate_up)
    assert is_released(down)
    assert torch.equal(gate_up, before[0])
    assert torch.equal(down, before[1])
