"""The conditions of service: which weights are flushed and how often, what is captured, which routing stays."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tunebook as tb
from tunebook.devices import CpuDevice, DeviceLostError, Flush
from tunebook.dispatch import Binding, Op, Scope, collecting
from tunebook.errors import OpError, UsageError
from tunebook.kernels import experts
from tunebook.measure import sample
from tunebook.ops import draw_rows
from tunebook.records import DEFAULT, Environment, Problem, Tactic
from tunebook.tuner import Collection, Task, tasks
from tunebook.tuner._replicas import PLAIN, Conditions, conditions, contender, replicas

pytestmark = pytest.mark.usefixtures("clean_ops")

#: A layer's weights here: 1024 values of fp32.
WEIGHTS = 4096


class CountedFlush(Flush):
    """Notes in a device's log when it is called."""

    def __init__(self, bytes: int, log: list[str]) -> None:
        super().__init__(bytes)
        self._log = log

    def __call__(self) -> None:
        self._log.append("flush")


class Machine:
    """A device with a small last-level cache, which notes what it is asked for; with graphs or without."""

    name = "cpu"

    def __init__(self, cache: int = 4 * WEIGHTS, graphs: bool = False) -> None:
        self.log: list[str] = []
        self._cache = cache
        self._graphs = graphs

    def clock(self) -> float:
        self.log.append("clock")
        return float(len(self.log))

    def synchronize(self) -> None:
        self.log.append("wait")

    def stream(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def environment(self) -> Environment:
        return Environment(hard={"device": "made up"})

    def free_memory(self) -> int:
        return 1 << 33

    def cache_bytes(self) -> int:
        return self._cache

    def flush(self) -> Flush:
        return CountedFlush(self._cache, self.log)

    def no_capture(self) -> str | None:
        return None if self._graphs else "it has no graphs"

    def capture(self, call: Callable[[], Any]) -> Callable[[], Any]:
        result = call()
        self.log.append("captured")

        def replay() -> Any:
            self.log.append("replay")
            return result

        return replay


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def scaled() -> Op[Any, Any]:
    @tb.op("scaled", buckets={"x": {0: tb.pow2(name="M")}}, constants=("by",))
    def scaled(x: Tensor, by: Tensor) -> Tensor:
        return x * by

    @scaled.runner("other", version="1")
    def other(x: Tensor, by: Tensor) -> Tensor:
        return by * x

    return scaled


Inputs = list[tuple[Tensor]]


def layers_of(count: int, *, measurement: str = "eager") -> tuple[list[Binding], Inputs]:
    """So many layers with `WEIGHTS` bytes each, in one scope, and an input for each."""
    op, scope = scaled(), Scope("model", measurement=measurement)
    layers = [op.bind(torch.full((1024,), float(i + 1)), scope=scope) for i in range(count)]
    return layers, [(torch.ones(2, 1024),) for _ in layers]


def problem_of(layers: Sequence[Binding], inputs: Inputs, policy: str = "eager") -> Problem:
    spec = layers[0].spec
    found = spec.shape.problem(spec.shape.describe((*inputs[0], *layers[0].constants)), policy)
    assert found is not None
    return found


def test_a_lone_layer_is_flushed_for_every_tactic_before_each_call_and_outside_the_timed_part() -> None:
    machine = Machine()
    layers, inputs = layers_of(1)
    found = conditions(problem_of(layers, inputs), replicas(layers), inputs, machine)
    for tactic in (DEFAULT, Tactic(runner="other")):
        candidate = contender(tactic, layers, inputs, found)
        machine.log.clear()
        sample(candidate, machine, inner=3, offset=0)
        assert machine.log == ["flush", "wait", "clock", "wait", "clock"] * 3


def test_layers_that_fit_the_cache_together_are_flushed_once_a_turn() -> None:
    machine = Machine(cache=4 * WEIGHTS)
    layers, inputs = layers_of(3)
    candidate = contender(DEFAULT, layers, inputs, conditions(problem_of(layers, inputs), layers, inputs, machine))
    sample(candidate, machine, inner=6, offset=1)
    assert machine.log.count("flush") == 2


@pytest.mark.parametrize("count", [4, 5])
def test_layers_whose_weights_are_as_much_as_a_flush_are_not_flushed(count: int) -> None:
    machine = Machine(cache=4 * WEIGHTS)
    layers, inputs = layers_of(count)
    assert conditions(problem_of(layers, inputs), layers, inputs, machine) == PLAIN
    sample(contender(DEFAULT, layers, inputs), machine, inner=count, offset=0)
    assert "flush" not in machine.log


def test_a_rotation_that_memory_made_smaller_is_flushed_whatever_its_weights_take() -> None:
    machine = Machine(cache=WEIGHTS)
    layers, inputs = layers_of(3)
    found = conditions(problem_of(layers, inputs), layers, inputs, machine, narrowed=True)
    sample(contender(DEFAULT, layers, inputs, found), machine, inner=6, offset=0)
    assert machine.log.count("flush") == 2


def test_weights_that_layers_share_count_once() -> None:
    """Tied weights are one place in memory: going round them leaves a cache warm."""
    machine = Machine(cache=2 * WEIGHTS)
    op, weight = scaled(), torch.ones(1024)
    tied = [op.bind(weight) for _ in range(4)]
    inputs = [(torch.ones(2, 1024),)] * 4
    assert conditions(problem_of(tied, inputs), tied, inputs, machine).flush is not None


def test_an_op_without_weights_is_not_flushed() -> None:
    """Its inputs come warm from the op before."""

    @tb.op("plain")
    def plain(x: Tensor) -> Tensor:
        return x + 1

    layers, inputs = [plain.bind()], [(torch.ones(2, 3),)]
    assert conditions(problem_of(layers, inputs), layers, inputs, Machine()) == PLAIN


def test_inputs_are_read_again_after_the_flush_and_not_changed() -> None:
    """The op before has just written them in service. They are touched where the flush is, outside the timed part."""
    machine = Machine()
    layers, inputs = layers_of(2)

    class Watched(Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            machine.log.append(func.__name__)
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]

    watched = [(value.as_subclass(Watched),) for (value,) in inputs]
    problem = problem_of(layers, inputs)
    found = conditions(problem, layers, watched, machine)
    assert found.flush is not None
    machine.log.clear()
    found.flush()
    assert machine.log == ["flush", "clone", "clone"]
    assert all(bool((value == 1).all()) for (value,) in inputs)


# ------------------------------------------------------------------------------------------------------------ capture


def test_captured_problems_race_replays() -> None:
    machine = Machine(cache=0, graphs=True)
    layers, inputs = layers_of(3)
    found = conditions(problem_of(layers, inputs, "captured"), layers, inputs, machine)
    candidate = contender(Tactic(runner="other"), layers, inputs, found)
    assert machine.log == ["captured"] * 3
    assert [float(call()[0, 0]) for call in candidate.calls] == [1.0, 2.0, 3.0], "each layer its own graph"
    machine.log.clear()
    sample(candidate, machine, inner=6, offset=0)
    assert Counter(machine.log)["replay"] == 6


def test_eager_problems_capture_nothing_where_the_device_could() -> None:
    machine = Machine(cache=0, graphs=True)
    layers, inputs = layers_of(2)
    contender(DEFAULT, layers, inputs, conditions(problem_of(layers, inputs), layers, inputs, machine))
    assert "captured" not in machine.log


@pytest.mark.parametrize("device", [Machine(graphs=False), CpuDevice()], ids=["made up", "cpu"])
def test_a_policy_that_the_device_cannot_follow_is_refused_by_name(device: Any) -> None:
    layers, inputs = layers_of(1)
    with pytest.raises(UsageError, match=r"'captured'.*'eager'"):
        conditions(problem_of(layers, inputs, "captured"), layers, inputs, device)
    with pytest.raises(UsageError, match=r"'sideways'.*eager, captured"):
        conditions(problem_of(layers, inputs, "sideways"), layers, inputs, device)


def test_a_tactic_that_cannot_be_captured_is_named_with_what_to_do() -> None:
    def refuse(call: Callable[[], Any]) -> Callable[[], Any]:
        raise RuntimeError("operation not permitted when stream is capturing")

    layers, inputs = layers_of(1)
    with pytest.raises(OpError, match=r"op scaled: other cannot be captured.*not permitted.*'eager'"):
        contender(Tactic(runner="other"), layers, inputs, Conditions(capture=refuse))


def test_a_device_that_is_lost_in_a_capture_is_not_told_as_a_fault_of_the_capture() -> None:
    def lose(call: Callable[[], Any]) -> Callable[[], Any]:
        raise DeviceLostError("cuda:0: an illegal memory access was encountered")

    layers, inputs = layers_of(1)
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        contender(Tactic(runner="other"), layers, inputs, Conditions(capture=lose))


# ----------------------------------------------------------------------------------------------------------- policies


def collected(*groups: tuple[Sequence[Binding], Inputs]) -> list[Task]:
    collection = Collection(Machine())
    with collecting(collection):
        for layers, inputs in groups:
            for layer, args in zip(layers, inputs, strict=True):
                layer.caller()(*args)
    return tasks(collection)


def test_two_policies_are_two_problems_with_layers_of_their_own() -> None:
    eager, captured = layers_of(2), layers_of(3, measurement="captured")
    found = collected(eager, captured)
    by_policy = {policy: [t for t in found if t.problem.policy == policy] for policy in ("eager", "captured")}
    assert {p: sorted(t.problem.key for t in ts) for p, ts in by_policy.items()} == {
        "eager": ["scaled|x.1=1024,by.0=1024|fp32|M≤1", "scaled|x.1=1024,by.0=1024|fp32|M≤2"],
        "captured": ["scaled|x.1=1024,by.0=1024|fp32|M≤1|captured", "scaled|x.1=1024,by.0=1024|fp32|M≤2|captured"],
    }
    for task in found:
        assert Problem.parse(task.problem.key) == task.problem
        assert len(task.family.layers) == (2 if task.problem.policy == "eager" else 3)
        assert {layer.scope.measurement for layer in task.family.layers} == {task.problem.policy}


def test_a_verdict_of_one_policy_serves_no_call_of_the_other() -> None:
    (layer,), (args,) = layers_of(1, measurement="captured")
    other = Tactic(runner="other")
    call = layer.caller()
    layer.scope.install({problem_of([layer], [args]).key: other})
    call(*args)
    assert layer.scope.counts == {"default: not tuned": 1}
    layer.scope.install({problem_of([layer], [args], "captured").key: other})
    call(*args)
    assert layer.scope.counts == {"default: not tuned": 1}, "now it is served"


# ------------------------------------------------------------------------------------------------------ live routing


@given(st.integers(1, 40), st.integers(0, 200), st.integers(0, 1 << 32))
def test_drawn_rows_are_live_ones_each_as_often_as_any_other(live: int, wanted: int, seed: int) -> None:
    rows = draw_rows(live, wanted, random.Random(seed)).tolist()
    assert len(rows) == wanted
    counts = Counter(rows)
    assert set(counts) <= set(range(live))
    times = [counts[row] for row in range(live)]
    assert max(times) - min(times) <= 1


LIVE = st.lists(st.lists(st.integers(0, 7), min_size=2, max_size=2), min_size=1, max_size=24)


@settings(max_examples=60)
@given(LIVE, st.integers(1, 100), st.integers(0, 1 << 32))
def test_a_skewed_routing_stays_skewed_at_other_sizes(live: list[list[int]], wanted: int, seed: int) -> None:
    """Whole rows: each token keeps its own experts and scores, so that each expert's share can hardly change."""
    index = torch.tensor(live)
    names = torch.arange(len(live))
    x, scores = names[:, None].expand(-1, 4).float(), names[:, None].expand(-1, 2) / 100
    got = experts.shape.resample((x, index, scores), {"M": wanted}, random.Random(seed))
    tokens = got[0][:, 0].long()
    assert [len(value) for value in got] == [wanted] * 3
    assert torch.equal(got[1], index[tokens]), "every row is a live row"
    assert torch.equal(got[2], scores[tokens])
    before = torch.bincount(index.flatten(), minlength=8)
    after = torch.bincount(got[1].flatten(), minlength=8)
    whole, rest = divmod(wanted, len(live))
    assert bool((after >= before * whole).all())
    assert bool((after <= before * (whole + bool(rest))).all())


def test_a_bucket_that_was_not_met_is_raced_on_the_routing_of_the_one_that_was() -> None:
    """Nine tokens in ten go to one expert: so it stays, for each layer with the expert of its own."""
    scope, tokens = Scope("model"), 64
    weights = torch.randn(8, 8, 4), torch.randn(8, 4, 4)
    layers = [experts.bind(weights[0] + i, weights[1], "silu", scope=scope) for i in range(2)]
    collection = Collection(Machine())
    with collecting(collection):
        for favourite, layer in enumerate(layers):
            index = torch.full((tokens, 1), favourite)
            index[::10, 0] = 7
            layer.caller()(torch.randn(tokens, 4), index, torch.ones(tokens, 1))
    (task,) = [task for task in tasks(collection) if task.sizes == {"M": 16}]
    assert not task.seen
    shares = [0.0, 0.0]
    for seed in range(50):
        for place, (_, index, _) in enumerate(task.inputs(task.sizes, random.Random(seed), task.family.layers)):
            assert set(index.flatten().tolist()) <= {place, 7}, "its own layer's rows"
            shares[place] += float((index == place).float().mean()) / 50
    assert shares == pytest.approx([0.89, 0.89], abs=0.03)
