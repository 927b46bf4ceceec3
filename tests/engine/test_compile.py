"""An attached model under ``torch.compile``: its ops are single nodes of one graph, and serve what is tuned."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.cache_utils import DynamicCache, StaticCache

import tunebook as tb
from tunebook.dispatch import Binding
from tunebook.engine._cache import LEAST_ROOM, layer_with_room
from tunebook.engine.models import random_model, tiny_config
from tunebook.kernels._native import unavailable
from tunebook.records import Problem, Tactic

pytestmark = pytest.mark.usefixtures("clean_ops", "fresh_compiler")
Noted = Callable[[], AbstractContextManager[dict[str, tuple[Binding, Problem]]]]
needs_native = pytest.mark.skipif(unavailable() is not None, reason=f"the native kernels are not here: {unavailable()}")
OPCHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
TRANSPOSED = Tactic.parse("torch_transposed")
IDS = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(0))
#: Of a layer: its own; with the norms of the model and the LM head.
ONE_TOKEN = {
    "rms_norm": 3,
    "linear": 3,
    "qkv": 2,
    "attend": 2,
    "add_rms_norm": 2,
    "router": 2,
    "experts": 2,
    "residual_add": 2,
}
SEVERAL = {name: count for name, count in ONE_TOKEN.items() if name != "attend"}


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """No code compiled by another test, whose count would be limited."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """A compiler's backend that keeps the graphs and compiles them for functions without side effects."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.seen.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    @property
    def ops(self) -> list[dict[str, int]]:
        """How many of each library op every graph has."""
        targets = ([str(node.target) for node in graph.graph.nodes] for graph in self.seen)
        return [
            dict(Counter(name.split(".")[1] for name in names if name.startswith("tunebook."))) for names in targets
        ]


def model_of(architecture: str) -> Any:
    return random_model(tiny_config(architecture), "bfloat16")


def cache_of(model: Any, kind: str) -> Any:
    if kind == "none":
        return None
    return StaticCache(config=model.config, max_cache_len=16) if kind == "static" else DynamicCache(config=model.config)


def steps(model: Any, cache: Any = None, call: Any = None) -> list[torch.Tensor]:
    """Logits of a prefill of 8 tokens, and of each of the next three by itself."""
    call = model if call is None else call
    spans = ((0, 8), (8, 9), (9, 10), (10, 11))
    return [call(IDS[:, a:b], past_key_values=cache, use_cache=cache is not None).logits.clone() for a, b in spans]


@pytest.fixture
def tune(noted: Noted) -> Callable[..., None]:
    """``tune(model, attachment, cache)`` has a tactic of the native runner serve every problem of `steps`."""

    def install(model: Any, attachment: Any, cache: Any = None) -> None:
        with noted() as problems:
            steps(model, cache)
        chosen = {}
        for key, (binding, problem) in problems.items():
            runner = binding.spec.runners["native"]
            chosen[key] = next(one for one in runner.space_of(problem) if runner.refusal(one, problem) is None)
        attachment.scope.install(chosen)

    return install


@needs_native
@torch.inference_mode()
@pytest.mark.parametrize(
    ("architecture", "cache"),
    [("qwen3_moe", "dynamic"), ("granitemoe", "dynamic"), ("olmoe", "static"), ("mixtral", "none")],
)
def test_every_attached_op_is_a_node_of_one_graph_and_computes_what_it_does_eagerly(
    architecture: str, cache: str, tune: Callable[..., None]
) -> None:
    model = model_of(architecture)
    with tb.attach(model) as attachment:
        tune(model, attachment, cache_of(model, cache))
        expected = steps(model, cache_of(model, cache))
        graphs = Graphs()
        attachment.scope.counts.clear()
        with attachment.for_compile():
            compiled = torch.compile(model, fullgraph=True, backend=graphs)
            served = steps(model, cache_of(model, cache), compiled)
        assert all(torch.equal(one, other) for one, other in zip(served, expected, strict=True))
        assert not attachment.scope.counts, "tactics served, each at the size that it was chosen for"
        appended = {"append": 2} if cache == "dynamic" else {}
        assert graphs.ops[0] == SEVERAL
        assert all(ops == {**ONE_TOKEN, **appended} for ops in graphs.ops[1:])
        assert len(graphs.ops) >= 2
        assert all(
            torch.equal(one, other) for one, other in zip(steps(model, cache_of(model, cache)), expected, strict=True)
        )


@needs_native
@torch.inference_mode()
def test_weights_that_are_released_stay_so(tune: Callable[..., None]) -> None:
    model = model_of("qwen3_moe")
    with tb.attach(model) as attachment:
        tune(model, attachment)
        steps(model)
        for binding in attachment.bindings.values():
            for runner in binding.spec.runners.values():
                kept = [one for one in attachment.scope.tactics.values() if one.runner == runner.name]
                kept = [one for one in kept if runner.restore and runner.layout_of(one) in binding.prepared.layouts]
                if kept and not binding.released:
                    binding.release(kept[0])
        expected, released = steps(model), attachment.released_bytes
        kinds = {binding.spec.name for binding in attachment.bindings.values() if binding.released}
        assert kinds == {"linear", "qkv", "experts"}
        with attachment.for_compile():
            served = steps(model, call=torch.compile(model, fullgraph=True, backend=Graphs()))
        assert all(torch.equal(one, other) for one, other in zip(served, expected, strict=True))
        assert (attachment.released_bytes, attachment.scope.restored) == (released, 0)


class Called(TorchDispatchMode):
    """Notes a call of each library op."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.args: dict[Any, tuple[Any, ...]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "tunebook":
            self.args.setdefault(func, args)
        return func(*args, **(kwargs or {}))


@needs_native
@pytest.mark.parametrize("tuned", [True, False])
def test_what_the_compiler_is_told_of_an_op_is_so(tuned: bool, tune: Callable[..., None]) -> None:
    """Shapes, dtypes and strides of the results, nothing written but a cache's room, no result that shares memory."""
    model = model_of("granitemoe").requires_grad_(False)
    with torch.no_grad(), tb.attach(model) as attachment:
        if tuned:
            tune(model, attachment, DynamicCache(config=model.config))
        attachment.for_compile()
        with Called() as called:
            steps(model, DynamicCache(config=model.config))
        assert {op._schema.name.removeprefix("tunebook::") for op in called.args} == set(ONE_TOKEN)
        for op, args in called.args.items():
            whole = tuple(value.clone() if isinstance(value, torch.Tensor) else value for value in args)
            torch.library.opcheck(op, whole, test_utils=OPCHECKS)


def test_the_compiler_is_told_what_append_writes() -> None:
    with tb.attach(model_of("mixtral"), ("qkv",)) as attachment, attachment.for_compile():
        new, room = torch.randn(2, 2, 3, 4), [torch.zeros(2, 2, 8, 4) for _ in range(2)]
        torch.library.opcheck(torch.ops.tunebook.append.default, (new, new + 1, *room, 4), test_utils=OPCHECKS)
        torch.ops.tunebook.append(new, new + 1, *room, 4)
    assert torch.equal(room[0][:, :, 4:7], new)
    assert torch.equal(room[1][:, :, 4:7], new + 1)
    assert not any(half[:, :, rest].any() for half in room for rest in (slice(4), slice(7, 8)))


@torch.inference_mode()
def test_a_cache_that_grows_takes_a_bounded_number_of_graphs() -> None:
    tokens = 5 * LEAST_ROOM
    keys, values = (torch.randn(1, 2, tokens, 4) for _ in range(2))
    graphs, seen = Graphs(), []
    with tb.attach(model_of("mixtral"), ("qkv",)) as attachment, attachment.for_compile():
        cache = DynamicCache()
        cache.update(keys[:, :, :3], values[:, :, :3], 0)

        @torch.compile(fullgraph=True, backend=graphs)
        def extend(k: torch.Tensor, v: torch.Tensor) -> None:
            layer = layer_with_room(cache, 0)
            assert layer is not None
            assert layer.extend(k, v) is not None

        for at in range(3, tokens):
            extend(keys[:, :, at : at + 1], values[:, :, at : at + 1])
            assert torch.equal(cache.layers[0].keys, keys[:, :, : at + 1])
            seen.append(len(graphs.seen))
    assert torch.equal(cache.layers[0].values, values)
    assert seen[-1] == seen[len(seen) // 2] <= 6
    assert all(ops == {"append": 1} for ops in graphs.ops)


def linears() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4)).eval()


X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def test_calls_that_want_gradients_or_autocast_are_compiled_from_the_modules_own_code() -> None:
    model = linears()
    expected = model(X)
    expected.sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    with torch.autocast("cpu", torch.bfloat16):
        half = model(X)
    model.zero_grad()
    with tb.attach(model) as attachment:
        for binding in attachment.bindings.values():
            binding.release(TRANSPOSED)
        graphs = Graphs()
        with attachment.for_compile():
            compiled: Any = torch.compile(model, fullgraph=True, backend=graphs)
            with torch.inference_mode():
                torch.testing.assert_close(compiled(X), expected)
            assert attachment.released_bytes > 0
            found = compiled(X)
            found.sum().backward()
            assert attachment.released_bytes == 0, "they were read, and are there again"
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(compiled(X), half)
        assert graphs.ops == [{"linear": 2}, {}, {}]
    assert torch.equal(found, expected)
    assert all(torch.equal(one.grad, other) for one, other in zip(model.parameters(), gradients, strict=True))


@torch.inference_mode()
def test_a_compiled_graph_serves_what_is_installed_later_and_follows_the_weights(noted: Noted) -> None:
    model, x = linears(), X
    with tb.attach(model) as attachment:
        attachment.for_compile()
        graphs = Graphs()
        compiled: Any = torch.compile(model, fullgraph=True, backend=graphs)
        with noted() as problems:
            expected = compiled(x)
        assert {problem.op for _, problem in problems.values()} == {"linear"}
        assert attachment.prepared_bytes == 0
        attachment.scope.install(dict.fromkeys(problems, TRANSPOSED))
        torch.testing.assert_close(compiled(x), expected)
        assert attachment.prepared_bytes > 0
        for parameter in model.parameters():
            parameter.mul_(2)
        torch.testing.assert_close(compiled(x), model(x))
        assert not torch.allclose(compiled(x), expected)
        assert len(graphs.seen) == 1


@torch.inference_mode()
def test_the_forms_come_and_go() -> None:
    model = linears()
    expected, graphs = model(X), Graphs()
    with tb.attach(model) as attachment:
        eager = [layer.forward for layer in model]
        with attachment.for_compile():
            traced = [layer.forward for layer in model]
            assert not set(traced) & set(eager)
            with attachment.for_compile(False):
                assert [layer.forward for layer in model] == eager
            assert [layer.forward for layer in model] == traced
            assert torch.equal(model(X), expected), "it runs without a compiler too"
            copied = copy.deepcopy(model)
            compiled: Any = torch.compile(model, fullgraph=True, backend=graphs)
            compiled(X)
        assert [layer.forward for layer in model] == eager
        key = next(node.args[-1] for node in graphs.seen[0].graph.nodes if "tunebook" in str(node.target))
        assert torch.equal(torch.ops.tunebook.linear(X, key), model[0](X))
    assert torch.equal(model(X), expected)
    assert torch.equal(copied(X), expected), "a copy is not attached"
    with pytest.raises(RuntimeError, match="not attached any more"):
        torch.ops.tunebook.linear(X, key)
    with (
        tb.attach(model) as attachment,
        attachment.for_compile(),
        pytest.raises(RuntimeError, match="not attached any"),
    ):
        torch.ops.tunebook.linear(X, key)  # a graph of the past does not get the weights of another model
