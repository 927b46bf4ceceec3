"""Switching, installing and collecting, also in the middle of calls that other threads make."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.dispatch import FREE, Binding, Collector, Op, Scope, collecting, uncollected
from tunebook.errors import UsageError
from tunebook.records import DEFAULT, Tactic

FAST = Tactic(runner="fast")


#: The problem of ``x @ w`` on three columns, by its bucket.
KEY = "weighted|x.1=3,w.0=3,w.1=3|fp32|x.0≤{}"


def rows(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(count * 3).reshape(count, 3).to(dtype)


def counts() -> dict[str, int]:
    return dict(FREE.counts)


def test_a_switch_turns_tuned_tactics_off_and_on_without_resolving_again(declare: Any) -> None:
    demo = declare()
    demo.serve(4)
    assert demo.who(rows(4)) == "fast"
    FREE.switch(False)
    assert demo.who(rows(4)) == "default"
    FREE.switch(True)
    assert demo.who(rows(4)) == "fast"
    FREE.switch(False)
    assert demo.who(rows(4)) == "default"
    assert demo.described == 1, "the default needs no description"
    assert counts() == {}, "the default was asked for"


def test_what_is_installed_later_serves_from_then_on(declare: Any) -> None:
    demo = declare()
    assert demo.who(rows(4)) == "default"
    demo.serve(4)
    assert demo.who(rows(4)) == "fast"
    FREE.install({}, replace=True)
    assert demo.who(rows(4)) == "default"


@pytest.mark.parametrize("first", [True, False])
def test_a_switch_in_the_middle_of_a_resolution_is_not_lost(declare: Any, first: bool) -> None:
    """Another thread toggles while a call is being described; what that call found serves under its own state only."""
    demo = declare()
    demo.serve(4)
    FREE.switch(first)
    demo.hook = lambda: FREE.switch(not first)
    demo.op(rows(4))
    demo.hook = lambda: None
    for tuned in (not first, first, not first):
        FREE.switch(tuned)
        assert demo.who(rows(4)) == ("fast" if tuned else "default"), f"tuned={tuned}"


def _while_preparing(act: Callable[[], None]) -> Op[Any, Any]:
    """``weighted``, with `act` done by another thread, so to say, while weights are being prepared."""

    @tb.op("weighted", constants=("w",))
    def weighted(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x @ w

    def pack(w: torch.Tensor) -> torch.Tensor:
        act()
        return w

    @weighted.runner("fast", version="1", prepare=pack)
    def fast(x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
        return x @ packed + 100

    FREE.install({KEY.format(4): FAST})
    return weighted


def test_a_switch_while_weights_are_prepared_is_not_lost() -> None:
    weighted = _while_preparing(lambda: FREE.switch(False))
    w = torch.eye(3)
    weighted(rows(4), w)
    assert torch.equal(weighted(rows(4), w), rows(4)), "the default serves now"
    FREE.switch(True)
    assert torch.equal(weighted(rows(4), w), rows(4) + 100)


def test_tactics_that_are_installed_while_weights_are_prepared_are_not_lost() -> None:
    weighted = _while_preparing(lambda: FREE.install({KEY.format(4): DEFAULT}))
    w = torch.eye(3)
    weighted(rows(4), w)
    assert torch.equal(weighted(rows(4), w), rows(4))


def test_a_scope_switches_its_own_bindings_alone(declare_weighted: Any) -> None:
    weighted, _ = declare_weighted()
    one, other = Scope("one"), Scope("other")
    calls = [weighted.bind(torch.eye(3), scope=scope).caller() for scope in (one, other)]
    for scope in (one, other):
        scope.install({KEY.format(4): FAST})
    one.switch(False)
    assert [int(call(rows(4))[0, 0]) for call in calls] == [0, 100]
    one.switch(True)
    assert [int(call(rows(4))[0, 0]) for call in calls] == [100, 100]


def test_calls_in_threads_are_right_while_another_switches(declare_weighted: Any) -> None:
    weighted, _ = declare_weighted()
    FREE.install({KEY.format(size): FAST for size in (1, 2, 4, 8)})
    weights = [torch.eye(3) * (i + 1) for i in range(4)]
    wrong: list[Any] = []
    done = threading.Event()

    def work(worker: int) -> None:
        try:
            with torch.inference_mode():
                for turn in range(150):
                    x, factor = rows(1 + (turn + worker) % 8), 1 + turn % 4
                    y = weighted(x, weights[factor - 1])
                    if not (torch.equal(y, x * factor) or torch.equal(y, x * factor + 100)):
                        wrong.append((x, factor, y))
        except BaseException as error:  # noqa: BLE001 - it is what the test looks for
            wrong.append(error)

    def toggle() -> None:
        tuned = False
        while not done.is_set():
            FREE.switch(tuned)
            FREE.install({KEY.format(2): FAST if tuned else DEFAULT})
            tuned = not tuned

    workers = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    toggler = threading.Thread(target=toggle)
    toggler.start()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    done.set()
    toggler.join()
    assert wrong == []
    FREE.switch(False)
    assert weighted(rows(4), weights[0])[0, 0] == 0, "after all the switching the state is what was asked for last"
    FREE.switch(True)
    FREE.install({KEY.format(2): FAST})
    assert all(weighted(rows(size), w)[0, 0] == 100 for size in (1, 2, 4, 8) for w in weights)


def test_bindings_may_come_and_go_in_a_thread_while_another_switches(declare_weighted: Any) -> None:
    weighted, _ = declare_weighted()
    scope, w = Scope("busy"), torch.eye(3)
    kept = [weighted.bind(w, scope=scope) for _ in range(200)]
    made = 0
    done = threading.Event()

    def come_and_go() -> None:
        nonlocal made
        while not done.is_set():
            for _ in range(20):
                weighted.bind(w, scope=scope)
                made += 1

    thread = threading.Thread(target=come_and_go)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        turn = 0
        while made < 2000:
            turn += 1
            scope.switch(bool(turn % 2))
            with uncollected():
                pass
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert set(kept) <= set(scope.bindings)


class Noting(Collector):
    def __init__(self) -> None:
        self.sizes: list[int] = []

    def note(self, binding: Binding, args: tuple[Any, ...]) -> Callable[..., Any]:
        self.sizes.append(len(args[0]))
        return binding.default


def test_a_collection_sees_every_call_and_leaves_what_served_before(declare: Any) -> None:
    demo = declare()
    demo.serve(4)
    assert demo.who(rows(4)) == "fast"
    noting = Noting()
    with collecting(noting):
        assert [demo.who(rows(size)) for size in (4, 4, 2)] == ["default"] * 3
        with uncollected():
            assert demo.who(rows(4)) == "fast"
        assert demo.who(rows(1)) == "default"
        with pytest.raises(UsageError, match="already"), collecting(Noting()):
            pass
        assert demo.who(rows(4)) == "default"
    assert noting.sizes == [4, 4, 2, 1, 4]
    described = demo.described
    assert demo.who(rows(4)) == "fast"
    assert demo.described == described, "tables are switched, not emptied"


def test_a_collection_that_ends_with_an_error_ends_too(declare: Any) -> None:
    demo = declare()
    demo.serve(4)
    with pytest.raises(ZeroDivisionError), collecting(Noting()):
        raise ZeroDivisionError
    assert demo.who(rows(4)) == "fast"
