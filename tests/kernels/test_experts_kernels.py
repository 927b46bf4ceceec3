"""Every experts kernel against an fp64 reference, over shapes, routings and dtypes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tunebook.errors import OpError
from tunebook.kernels._experts import _onednn, _routing, _torch

Kernel = Callable[..., Tensor]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


def _prepared(function: Kernel, prepare: Callable[..., object], **params: int) -> Kernel:
    return lambda x, index, scores, *constants: function(x, index, scores, prepare(*constants), **params)


def _padded(run: int) -> Kernel:
    return lambda *args: _torch.padded_bmm(*args, run=run)


def _packed(hint: int) -> Kernel:
    return _prepared(_onednn.loop, lambda gate_up, down, activation: _onednn.pack(gate_up, down, activation, hint))


KERNELS: dict[str, Kernel] = {
    "loop": _torch.loop,
    "loop_columns": _torch.loop_columns,
    "padded_bmm-all": _padded(0),
    "padded_bmm-1": _padded(1),
    "padded_bmm-2": _padded(2),
    "grouped_mm": _torch.grouped_mm,
    "batched_mm": _torch.batched_mm,
    "loop_transposed": _prepared(_torch.loop_transposed, _torch.transpose),
    "padded_bmm_transposed-all": _prepared(_torch.padded_bmm_transposed, _torch.transpose, run=0),
    "padded_bmm_transposed-2": _prepared(_torch.padded_bmm_transposed, _torch.transpose, run=2),
    "grouped_mm_transposed": _prepared(_torch.grouped_mm_transposed, _torch.transpose),
    **({f"onednn-{hint}": _packed(hint) for hint in (1, 16, 64)} if _onednn.available(torch.bfloat16) is None else {}),
}
EVERY_KERNEL = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())


@dataclass(frozen=True)
class Case:
    """One call's arguments, in order."""

    x: Tensor
    index: Tensor
    scores: Tensor
    gate_up: Tensor
    down: Tensor
    activation: str

    def __iter__(self) -> Iterator[Tensor | str]:
        return iter((self.x, self.index, self.scores, self.gate_up, self.down, self.activation))


def make(
    index: list[list[int]],
    experts: int = 4,
    hidden: int = 16,
    inner: int = 8,
    dtype: torch.dtype = torch.float32,
    scores: torch.dtype = torch.float32,
    activation: str = "silu",
    choices: int = 2,
    seed: int = 0,
) -> Case:
    """Random values for a routing; weights are scaled so that outputs are around one."""
    random = torch.Generator().manual_seed(seed)
    routing = torch.tensor(index, dtype=torch.int64).reshape(len(index), choices if not index else len(index[0]))
    gate_up = torch.randn(experts, 2 * inner, hidden, generator=random) / hidden**0.5
    down = torch.randn(experts, hidden, inner, generator=random) / inner**0.5
    return Case(
        torch.randn(len(index), hidden, generator=random).to(dtype),
        routing,
        torch.rand(routing.shape, generator=random).to(scores),
        gate_up.to(dtype),
        down.to(dtype),
        activation,
    )


def reference(case: Case) -> Tensor:
    """The definition, pair by pair, in fp64."""
    act = _ACTIVATIONS[case.activation]
    out = torch.zeros(case.x.shape, dtype=torch.float64)
    for token, row in enumerate(case.index.tolist()):
        for choice, expert in enumerate(row):
            if expert < len(case.gate_up):
                gate, up = (case.gate_up[expert].double() @ case.x[token].double()).chunk(2)
                out[token] += case.scores[token, choice].double() * (case.down[expert].double() @ (act(gate) * up))
    return out


def check(kernel: Kernel, case: Case) -> None:
    got, wanted = kernel(*case), reference(case)
    assert got.dtype == case.x.dtype
    assert got.shape == case.x.shape
    assert got.is_contiguous()
    tolerance = 3e-2 if case.x.dtype == torch.bfloat16 else 2e-5
    # Outputs grow with the scores, and so does what rounding leaves of them: a routing's add up to 1, these to more.
    whole = case.scores.double().abs().sum(-1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(got.double() / whole, wanted / whole, rtol=tolerance, atol=tolerance)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    experts = draw(st.integers(1, 6))
    tokens = draw(st.integers(0, 12))
    choices = draw(st.integers(1, 3))
    expert = st.integers(0, experts) if draw(st.booleans()) else st.integers(0, experts - 1)
    index = draw(st.lists(st.lists(expert, min_size=choices, max_size=choices), min_size=tokens, max_size=tokens))
    dtype = draw(st.sampled_from((torch.float32, torch.bfloat16)))
    return make(
        index,
        experts,
        hidden=draw(st.sampled_from((8, 16, 40))),
        inner=draw(st.sampled_from((8, 24))),
        dtype=dtype,
        scores=draw(st.sampled_from((torch.float32, dtype))),
        activation=draw(st.sampled_from(sorted(_ACTIVATIONS))),
        choices=choices,
        seed=draw(st.integers(0, 9)),
    )


@EVERY_KERNEL
@settings(deadline=None)
@given(case=cases())
def test_agrees_with_the_definition(kernel: Kernel, case: Case) -> None:
    check(kernel, case)


ROUTINGS = {
    "no tokens": [],
    "one token": [[2, 0]],
    "one token, one expert twice": [[1, 1]],
    "one token without an expert": [[4, 4]],
    "one token with one expert": [[4, 3]],
    "all tokens to one expert": [[3, 3]] * 9,
    "nobody has an expert": [[4, 4]] * 6,
    "some have no expert": [[0, 4], [4, 1], [4, 4], [1, 0], [3, 4], [0, 1]],
    "the first expert is idle": [[1, 3], [3, 1], [1, 1], [3, 3], [1, 3]],
}


@EVERY_KERNEL
@pytest.mark.parametrize("index", ROUTINGS.values(), ids=ROUTINGS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_odd_routings(kernel: Kernel, index: list[list[int]], dtype: torch.dtype) -> None:
    check(kernel, make(index, dtype=dtype))


@EVERY_KERNEL
def test_many_rows_an_expert(kernel: Kernel) -> None:
    """More rows than any threshold inside the kernels, and more than any batch hint."""
    index = torch.randint(0, 3, (300, 2), generator=torch.Generator().manual_seed(1)).tolist()
    check(kernel, make(index, experts=3, dtype=torch.bfloat16))


@EVERY_KERNEL
def test_the_layer_may_be_called_with_strided_arguments(kernel: Kernel) -> None:
    whole = make([[0, 1], [2, 3], [3, 0], [1, 1], [2, 0]])
    strided = Case(
        whole.x.t().contiguous().t(),
        whole.index.t().contiguous().t(),
        whole.scores.t().contiguous().t(),
        whole.gate_up,
        whole.down,
        "silu",
    )
    assert not strided.x.is_contiguous()
    check(kernel, strided)


@EVERY_KERNEL
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_weights_that_require_gradients(kernel: Kernel, mode: Callable[[], torch.no_grad]) -> None:
    case = make([[0, 1], [2, 3], [3, 0]])
    gate_up, down = torch.nn.Parameter(case.gate_up), torch.nn.Parameter(case.down)
    with mode():
        check(kernel, Case(case.x, case.index, case.scores, gate_up, down, "silu"))


@EVERY_KERNEL
def test_a_score_without_an_expert_is_never_read(kernel: Kernel) -> None:
    case = make([[0, 4], [4, 1], [2, 3], [4, 4], [1, 0], [2, 4]])
    wanted = kernel(*case)
    scores = case.scores.masked_fill(case.index == 4, float("nan"))
    torch.testing.assert_close(kernel(case.x, case.index, scores, case.gate_up, case.down, "silu"), wanted)


@EVERY_KERNEL
def test_one_token_does_not_reach_another(kernel: Kernel) -> None:
    """Padding repeats a token: if it holds a NaN, the others must not."""
    case = make([[0, 1], [2, 3], [3, 0], [1, 4], [2, 4], [0, 2]])
    case.x[0] = float("nan")
    assert kernel(*case)[1:].isfinite().all()


@EVERY_KERNEL
def test_two_calls_give_the_same_bits(kernel: Kernel) -> None:
    case = make(torch.randint(0, 4, (64, 2), generator=torch.Generator().manual_seed(2)).tolist(), dtype=torch.bfloat16)
    assert torch.equal(kernel(*case), kernel(*case))


@EVERY_KERNEL
def test_an_unknown_activation_is_named(kernel: Kernel) -> None:
    with pytest.raises(OpError, match=r"'swoosh'.*silu"):
        kernel(*make([[0, 1]], activation="swoosh"))


@pytest.mark.parametrize("tokens", [1, 64])
def test_scores_are_not_rounded_to_the_outputs_dtype(tokens: int) -> None:
    """A score between two bf16 numbers keeps 16 bits: against outputs that cancel, rounding it would show."""
    score = 1 + 2**-9
    outputs = torch.tensor([[1.0], [-1.0]], dtype=torch.bfloat16).repeat(tokens, 8)
    scores = torch.tensor([[score, 1.0]]).repeat(tokens, 1)
    summed = _routing.weighted_sum(outputs, torch.arange(2 * tokens), scores)
    torch.testing.assert_close(summed.float(), torch.full((tokens, 8), 2.0**-9))


@settings(deadline=None)
@given(index=st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=2), max_size=20))
def test_groups_hold_every_pair_once(index: list[list[int]]) -> None:
    routing = torch.tensor(index, dtype=torch.int64).reshape(-1, 2)
    groups = _routing.group(routing, 5)
    flat = routing.flatten()
    assert groups.counts == [int((flat == expert).sum()) for expert in range(5)]
    assert torch.equal(groups.experts[groups.slots], flat)
    assert torch.equal(groups.tokens[groups.slots], torch.arange(len(flat)) // 2)
    experts, sizes = groups.active()
    assert sum(sizes) == len(flat)
    assert experts == sorted({expert for expert in flat.tolist() if expert < 5})


class _NewStorages(TorchDispatchMode):
    """Notes the bytes of every storage that operators return, apart from those of `known` tensors."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.held: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and not tensor.is_mkldnn:
                address = tensor.untyped_storage().data_ptr()
                if address not in self.known:
                    self.held[address] = tensor
        return result

    def largest(self) -> int:
        return max((tensor.untyped_storage().nbytes() for tensor in self.held.values()), default=0)


WORKSPACES: dict[str, tuple[Kernel, Callable[..., int]]] = {
    "loop": (_torch.loop, _torch.loop_workspace),
    "loop_columns": (_torch.loop_columns, _torch.loop_workspace),
    "grouped_mm": (_torch.grouped_mm, _torch.loop_workspace),
    "batched_mm": (_torch.batched_mm, _torch.batched_workspace),
    "padded_bmm": (_padded(0), lambda *args: _torch.padded_workspace(*args, run=0)),
    "padded_bmm-2": (_padded(2), lambda *args: _torch.padded_workspace(*args, run=2)),
    "onednn": (_packed(16), _onednn.workspace),
}


@pytest.mark.parametrize(("kernel", "workspace"), WORKSPACES.values(), ids=WORKSPACES.keys())
@pytest.mark.parametrize("index", [[[0, 1]], [[3, 3]] * 20, [[0, 1], [2, 3]] * 30], ids=["one", "skewed", "many"])
def test_a_workspace_covers_the_largest_buffer(
    kernel: Kernel, workspace: Callable[..., int], index: list[list[int]]
) -> None:
    case = make(index, hidden=64, inner=48)
    with _NewStorages(value for value in case if isinstance(value, Tensor)) as storages:
        kernel(*case)
    assert 0 < storages.largest() <= workspace(*case)


def test_what_batched_mm_would_take_grows_with_every_pair() -> None:
    small, large = make([[0, 1]] * 3, hidden=64), make([[0, 1]] * 300, hidden=64)
    weights = small.gate_up[0].nbytes + small.down[0].nbytes
    assert _torch.batched_workspace(*small) >= 6 * weights
    assert _torch.batched_workspace(*large) >= 600 * weights
    assert _torch.loop_workspace(*large) < 600 * weights


def test_skew_costs_a_padded_product_memory_unless_runs_are_short() -> None:
    skewed = make([[0, 0]] * 60 + [[1, 2], [3, 1]], hidden=64)
    even = make([[0, 1], [2, 3]] * 31, hidden=64)
    assert _torch.padded_workspace(*skewed, run=0) > _torch.padded_workspace(*even, run=0)
    assert _torch.padded_workspace(*skewed, run=1) < _torch.padded_workspace(*skewed, run=0)


@pytest.mark.parametrize(("hidden", "inner", "size", "named"), [(12, 8, 2, "hidden"), (8, 6, 4, "intermediate")])
def test_grouped_products_refuse_what_they_cannot_take(hidden: int, inner: int, size: int, named: str) -> None:
    refusal = _torch.grouped_refusal(hidden, inner, size)
    assert refusal is not None
    assert named in refusal
    case = make([[0, 1]] * 3, hidden=hidden, inner=inner, dtype=torch.bfloat16 if size == 2 else torch.float32)
    with pytest.raises(RuntimeError, match="16 bytes"):
        _torch.grouped_mm(*case)


def test_grouped_products_take_the_rest() -> None:
    assert _torch.grouped_refusal(8, 16, 2) is None
    assert _torch.grouped_refusal(4, 12, 4) is None


def test_transposed_weights_are_contiguous_copies() -> None:
    case = make([[0, 1]])
    prepared = _torch.transpose(case.gate_up, case.down, "silu")
    assert prepared.gate_up.is_contiguous()
    assert torch.equal(prepared.gate_up, case.gate_up.mT)
    assert prepared.down.data_ptr() != case.down.data_ptr()


@pytest.mark.skipif(_onednn.available() is not None, reason="no oneDNN")
def test_packed_bytes_hold_at_least_the_weights() -> None:
    case = make([[0, 1]], hidden=33, inner=17)
    packed = _onednn.pack(case.gate_up, case.down, "silu", 16)
    assert case.gate_up.nbytes + case.down.nbytes <= _onednn.nbytes(packed) < 100 * case.gate_up.nbytes
