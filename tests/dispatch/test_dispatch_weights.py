"""An op's constants: whom they belong to, and the weights prepared from them: built once, counted, followed and freed."""

from __future__ import annotations

import copy
import gc
import io
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.dispatch import FREE, Scope, tensor_bytes
from tunebook.records import Tactic

FAST = Tactic(runner="fast")


#: The problem of ``x @ w`` on three columns, by its bucket.
KEY = "weighted|x.1=3,w.0=3,w.1=3|fp32|x.0≤{}"


def rows(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(count * 3).reshape(count, 3).to(dtype)


def counts() -> dict[str, int]:
    return dict(FREE.counts)


def test_bindings_go_with_the_constants(declare_weighted: Any) -> None:
    weighted, prepared = declare_weighted()
    FREE.install({KEY.format(4): FAST})
    w = torch.eye(3)
    packed: list[weakref.ref[Any]] = []
    for _ in range(3):
        weighted(rows(4), w)
    (binding,) = [b for b in FREE.bindings if b.spec is weighted]
    assert binding.prepared.layouts == ("fast:fast",)
    packed.append(weakref.ref(binding.prepared.get("fast:fast", dict)["w"]))
    packed += [weakref.ref(w), weakref.ref(binding)]
    assert len(prepared) == 1
    prepared.clear()
    del w, binding
    gc.collect()
    assert [ref() for ref in packed] == [None, None, None]
    assert not [b for b in FREE.bindings if b.spec is weighted]


def test_each_weight_has_its_own_binding_and_result(declare_weighted: Any) -> None:
    weighted, prepared = declare_weighted()
    FREE.install({KEY.format(4): FAST})
    weights = [torch.eye(3) * i for i in range(1, 4)]
    for _ in range(2):
        for i, w in enumerate(weights, 1):
            assert torch.equal(weighted(rows(4), w), rows(4) * i + 100)
    assert [id(w) for w in prepared] == [id(w) for w in weights]


def test_prepared_weights_are_built_once_and_shared_by_the_tactics_of_a_layout(declare_weighted: Any) -> None:
    weighted, prepared = declare_weighted(
        space={"hint": (1, 2), "block": (8, 16)}, layout=lambda hint, block: f"b{block}"
    )
    scope = Scope("shared")
    binding = weighted.bind(torch.eye(3), scope=scope)
    tactics = {(t.kwargs["hint"], t.kwargs["block"]): t for t in weighted.runners["fast"].combinations}
    call = binding.caller()
    for size, choice in ((1, (1, 8)), (2, (2, 8)), (4, (1, 8)), (8, (1, 16))):
        scope.install({KEY.format(size): tactics[choice]})
    for size in (1, 2, 4, 8, 3, 7):
        assert call(rows(size))[0, 0] == 100
    assert binding.prepared.layouts == ("fast:b8", "fast:b16")
    assert len(prepared) == 2
    each = 3 * 3 * 4 + 5 * 2
    assert binding.prepared.bytes == 2 * each
    assert binding.prepared.bytes_of("fast:b8") == each
    assert binding.prepared.bytes_of("fast:none") == 0
    binding.prepared.keep_only(["fast:b16"])
    assert binding.prepared.layouts == ("fast:b16",)
    assert binding.prepared.bytes == each


def test_closing_a_binding_frees_what_it_prepared(declare_weighted: Any) -> None:
    weighted, _ = declare_weighted()
    scope = Scope("closing")
    scope.install({KEY.format(4): FAST})
    binding = weighted.bind(torch.eye(3), scope=scope)
    binding.caller()(rows(4))
    held = weakref.ref(binding.prepared.get("fast:fast", dict)["w"])
    binding.close()
    gc.collect()
    assert held() is None
    assert binding.prepared.bytes == 0
    assert binding not in scope.bindings


def test_bytes_are_counted_by_storage_and_within_whatever_holds_them() -> None:
    base = torch.zeros(10, 4)

    class Holder:
        def __init__(self) -> None:
            self.one = base[2:]
            self.two = [base.t(), {"three": torch.zeros(3, dtype=torch.int16)}]
            self.self = self

    assert tensor_bytes(base[0]) == 160
    assert tensor_bytes(Holder()) == 160 + 6
    assert tensor_bytes((base, base, None, 3, "text", [base.view(-1)])) == 160
    assert tensor_bytes([torch.zeros(4), torch.zeros(4)]) == 32
    assert tensor_bytes(None) == tensor_bytes(()) == 0


def test_weights_that_onednn_has_packed_are_counted_too() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    packed = torch.zeros(64, 32).to_mkldnn()
    assert 64 * 32 * 4 <= tensor_bytes({"w": packed}) <= 2 * 64 * 32 * 4
    assert tensor_bytes([packed, packed]) == tensor_bytes(packed)


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.mul_(2),
        lambda w: w.copy_(2 * torch.eye(3)),
        lambda w: w.__setitem__(slice(None), 2 * torch.eye(3)),
        lambda w: setattr(w, "data", 2 * torch.eye(3)),
    ],
    ids=["mul_", "copy_", "setitem", "data ="],
)
def test_weights_that_are_written_in_place_are_prepared_again(
    declare_weighted: Any, write: Callable[[torch.Tensor], Any]
) -> None:
    weighted, prepared = declare_weighted()
    FREE.install({KEY.format(4): FAST})
    w = torch.eye(3)
    assert torch.equal(weighted(rows(4), w), rows(4) + 100)
    write(w)
    assert torch.equal(weighted(rows(4), w), rows(4) * 2 + 100)
    assert torch.equal(weighted(rows(4), w), rows(4) * 2 + 100)
    assert len(prepared) == 2


@pytest.mark.parametrize("parameter", [True, False])
def test_a_copy_of_a_weight_has_bindings_of_its_own(declare_weighted: Any, parameter: bool) -> None:
    weighted, prepared = declare_weighted()
    FREE.install({KEY.format(4): FAST})
    w = torch.nn.Parameter(torch.eye(3), requires_grad=False) if parameter else torch.eye(3)
    weighted(rows(4), w)
    twin = copy.deepcopy(w)
    twin.mul_(3)
    assert torch.equal(weighted(rows(4), twin), rows(4) * 3 + 100)
    assert torch.equal(weighted(rows(4), w), rows(4) + 100)
    assert [id(value) for value in prepared] == [id(w), id(twin)]


@pytest.mark.parametrize("parameter", [True, False])
def test_a_weight_can_be_saved_and_loaded_as_ever(declare_weighted: Any, parameter: bool) -> None:
    weighted, _ = declare_weighted()
    FREE.install({KEY.format(4): FAST})
    w = torch.nn.Parameter(torch.eye(3), requires_grad=False) if parameter else torch.eye(3)
    weighted(rows(4), w)
    file = io.BytesIO()
    torch.save({"w": w}, file)
    file.seek(0)
    assert torch.equal(torch.load(file)["w"], w)


def test_weights_that_begin_to_need_a_gradient_run_the_default(declare_weighted: Any) -> None:
    weighted, _ = declare_weighted()
    FREE.install({KEY.format(4): FAST})
    w = torch.eye(3)
    with torch.enable_grad():
        assert weighted(rows(4), w)[0, 0] == 100
        w.requires_grad_()
        y = weighted(rows(4), w)
        assert y.requires_grad, "its gradient is lost"
        assert y[0, 0] == 0
        w.requires_grad_(False)
        assert weighted(rows(4), w)[0, 0] == 100


@pytest.mark.parametrize("odd", [[1, 2], {"a": 1}, (1, [2])], ids=repr)
def test_a_constant_that_cannot_be_hashed_runs_the_default(odd: Any) -> None:
    @tb.op("odd", constants=("sizes",))
    def op(x: torch.Tensor, sizes: Any) -> Any:
        return sizes

    for _ in range(3):
        assert op(rows(4), odd) is odd
    assert sum(counts().values()) == 3


@pytest.mark.parametrize("value", [None, 3, "name", 1.5, True])
def test_constants_may_be_plain_values_and_are_told_apart(value: Any) -> None:
    @tb.op("plain", constants=("how",))
    def op(x: torch.Tensor, how: Any) -> Any:
        return how

    for other in (value, 1, 1.0, False, value):
        found = op(rows(4), other)
        assert found is other or (found == other and type(found) is type(other))


def test_a_tactic_that_cannot_be_prepared_leaves_the_default_and_is_tried_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried = []

    @tb.op("weighted", constants=("w",))
    def weighted(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x @ w

    def pack(w: torch.Tensor) -> None:
        tried.append(w)
        raise MemoryError("no room")

    @weighted.runner("fast", version="1", prepare=pack)
    def fast(x: torch.Tensor, packed: None) -> torch.Tensor:
        raise AssertionError

    FREE.install({KEY.format(4): FAST})
    w = torch.eye(3)
    with caplog.at_level(logging.WARNING, "tunebook"):
        for _ in range(3):
            assert torch.equal(weighted(rows(4), w), rows(4))
    assert len(tried) == 1
    assert counts() == {"default: preparing failed": 3}
    assert "no room" in caplog.text
