"""The kernels against fp64, over shapes, routings, dtypes, layouts and instruction sets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import tunebook.kernels._native as native
from tunebook.kernels._native._serve import tactic_of, usable_threads

if native.unavailable() is not None:
    pytest.skip(str(native.unavailable()), allow_module_level=True)

DTYPES = (torch.bfloat16, torch.float32)
GATES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda v: F.gelu(v, approximate="tanh"),
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardswish": F.hardswish,
    "mish": F.mish,
}
TACTICS = st.fixed_dictionaries(
    {
        "isa": st.sampled_from(native.instruction_sets() or ["none"]),
        "row_tile": st.one_of(st.integers(1, 32), st.integers(33, 128)),
        "columns": st.sampled_from([0, 16, 100, 256]),
        "split": st.sampled_from(["columns", "experts", "tokens"]),
        "prefetch": st.sampled_from([0, 512, -1]),
        "threads": st.integers(1, 3),
        "backend": st.sampled_from(["auto", "pool"]),
    }
)
LAYOUTS = st.sampled_from(["dot", 0, 16, 32, 64])


def laid_out(weight: torch.Tensor, layout: str | int, *, gated: bool = False) -> native.Weights:
    return (
        native.pack(weight, block=layout, gated=gated)
        if isinstance(layout, int) and layout
        else native.view(weight, gated=gated)
    )


def assert_close(out: torch.Tensor, exact: torch.Tensor, size: torch.Tensor, *, coarse: bool) -> None:
    """Within the rounding of the result's dtype, and of sums whose terms have the given absolute size."""
    assert out.isfinite().all()
    step = 2.0**-8 if coarse else 2.0**-20
    inner = 2.0**-8 if coarse else 2.0**-19
    bound = exact.abs() * step + size * inner + 1e-30
    assert ((out.double() - exact).abs() <= bound).all(), ((out.double() - exact).abs() / bound).max()


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(0, 140),
    columns=st.integers(1, 150),
    inner=st.integers(1, 140),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    bias=st.sampled_from([None, torch.bfloat16, torch.float32]),
    layout=LAYOUTS,
    tactic=TACTICS,
    seed=st.integers(0, 1000),
)
def test_linear_is_exact_within_rounding(rows, columns, inner, dtypes, bias, layout, tactic, seed):
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inner, generator=gen).to(dtypes[0])
    weight = torch.randn(columns, inner, generator=gen).to(dtypes[1])
    b = None if bias is None else torch.randn(columns, generator=gen).to(bias)
    out = native.linear(x, laid_out(weight, layout), b, native.tactic(**tactic, dot=layout == "dot"))
    exact = F.linear(x.double(), weight.double(), None if b is None else b.double())
    size = F.linear(x.double().abs(), weight.double().abs(), None if b is None else b.double().abs())
    assert out.dtype == x.dtype
    assert out.shape == exact.shape
    bound = exact.abs() * (2.0**-8 if dtypes[0] == torch.bfloat16 else 2.0**-22) + size * 2.0**-19
    assert ((out.double() - exact).abs() <= bound).all()


def routing(kind: str, tokens: int, choices: int, experts: int, gen: torch.Generator) -> torch.Tensor:
    if kind == "one":
        return torch.full((tokens, choices), experts - 1)
    if kind == "none":
        return torch.full((tokens, choices), experts)
    return torch.randint(0, experts + (kind == "some"), (tokens, choices), generator=gen)


def exact_experts(
    x: torch.Tensor,
    index: torch.Tensor,
    scores: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    act: Callable[[torch.Tensor], torch.Tensor],
    sums: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result and the absolute size of what is summed for it; of the sums inside, the share `sums` counts."""
    x, scores, gate_up, down = (v.double() for v in (x, scores, gate_up, down))
    out, size = torch.zeros_like(x), torch.zeros_like(x)
    for e in range(len(gate_up)):
        token, choice = (index == e).nonzero(as_tuple=True)
        gate, up = F.linear(x[token], gate_up[e]).chunk(2, -1)
        gate_size, up_size = F.linear(x[token].abs(), gate_up[e].abs()).chunk(2, -1)
        hidden = act(gate) * up
        scale = scores[token, choice].unsqueeze(1)
        out.index_add_(0, token, F.linear(hidden, down[e]) * scale)
        hidden_size = hidden.abs() + (gate_size + up_size) * (gate.abs() + up.abs() + 1) * sums
        size.index_add_(0, token, F.linear(hidden_size, down[e].abs()) * scale.abs())
    return out, size


@settings(max_examples=200, deadline=None)
@given(
    tokens=st.integers(0, 90),
    choices=st.integers(1, 5),
    experts=st.integers(1, 9),
    hidden=st.integers(1, 100),
    inner=st.integers(1, 100),
    kind=st.sampled_from(["any", "some", "one", "none"]),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.sampled_from((*DTYPES, torch.float16))),
    activation=st.sampled_from(sorted(GATES)),
    layouts=st.sampled_from([("dot", "dot"), (0, 0), (64, 64), (32, 16), (16, 64), (0, 32), (64, 0)]),
    tactic=TACTICS,
    seed=st.integers(0, 1000),
)
def test_experts_are_exact_within_rounding(
    tokens, choices, experts, hidden, inner, kind, dtypes, activation, layouts, tactic, seed
):
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, hidden, generator=gen).to(dtypes[0])
    gate_up = (torch.randn(experts, 2 * inner, hidden, generator=gen) / hidden**0.5).to(dtypes[1])
    down = (torch.randn(experts, hidden, inner, generator=gen) / inner**0.5).to(dtypes[1])
    index = routing(kind, tokens, choices, experts, gen)
    scores = torch.rand(tokens, choices, generator=gen).to(dtypes[2])
    out = native.experts(
        x,
        index,
        scores,
        laid_out(gate_up, layouts[0], gated=True),
        laid_out(down, layouts[1]),
        activation,
        native.tactic(**tactic, dot=layouts[0] == "dot"),
    )
    coarse = dtypes[0] == torch.bfloat16
    # 2**-17 and 2**-22 of the inner sums, after the factors of assert_close: they run in fp32 either way.
    exact, size = exact_experts(x, index, scores, gate_up, down, GATES[activation], 2.0**-9 if coarse else 2.0**-3)
    assert_close(out, exact, size, coarse=coarse)


def batch(tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, 96, generator=gen).bfloat16()
    return x, torch.rand(tokens, 7, generator=gen).topk(3).indices, torch.rand(tokens, 3, generator=gen)


@pytest.mark.parametrize("isa", native.instruction_sets())
@pytest.mark.parametrize("block", [16, 32, 64])
def test_a_result_depends_on_neither_split_nor_threads_nor_the_rest_of_the_batch(isa, block):
    gen = torch.Generator().manual_seed(1)
    gate_up = native.pack(torch.randn(7, 160, 96, generator=gen).bfloat16(), block=block, gated=True)
    down = native.pack(torch.randn(7, 96, 80, generator=gen).bfloat16(), block=block)
    x, index, scores = batch(300)
    whole = native.experts(x, index, scores, gate_up, down, "silu", native.tactic(isa=isa))
    for split in ("columns", "experts", "tokens"):
        for row_tile, threads, columns in ((1, 1, 0), (5, 2, 32), (32, 3, 256), (128, 2, 0)):
            tactic = native.tactic(isa=isa, split=split, row_tile=row_tile, threads=threads, columns=columns)
            assert torch.equal(native.experts(x, index, scores, gate_up, down, "silu", tactic), whole)
            part = native.experts(x[7:8], index[7:8], scores[7:8], gate_up, down, "silu", tactic)
            assert torch.equal(part[0], whole[7])


def test_a_neighbouring_row_that_is_nan_stays_out_of_a_row_major_product():
    weight = torch.full((8, 33), float("nan")).bfloat16()
    weight[3] = 1
    for isa in native.instruction_sets():
        for dot in (True, False):
            out = native.linear(
                torch.ones(2, 33).bfloat16(), native.view(weight), None, native.tactic(isa=isa, dot=dot)
            )
            assert (out[:, 3] == 33).all()


def test_what_cannot_be_computed_is_refused_by_name():
    isa = native.instruction_sets()[0]
    x, index, scores = batch(4)
    gate_up, down = (
        native.view(torch.zeros(7, 160, 96).bfloat16(), gated=True),
        native.view(torch.zeros(7, 96, 80).bfloat16()),
    )
    run = native.tactic(isa=isa)
    with pytest.raises(IndexError, match=r"outside 0\.\.E"):
        native.experts(x, index + 6, scores, gate_up, down, "silu", run)
    with pytest.raises(ValueError, match="activation 'selu'"):
        native.experts(x, index, scores, gate_up, down, "selu", run)
    with pytest.raises(ValueError, match="do not fit"):
        native.experts(x, index, scores, gate_up, native.view(torch.zeros(7, 96, 81).bfloat16()), "silu", run)
    with pytest.raises(ValueError, match="x has 95 columns"):
        native.experts(x[:, 1:], index, scores, gate_up, down, "silu", run)
    with pytest.raises(ValueError, match="index must be int64"):
        native.experts(x, index.int(), scores, gate_up, down, "silu", run)
    with pytest.raises(ValueError, match="row-major"):
        native.linear(x, native.pack(torch.zeros(5, 96), block=16), None, native.tactic(isa=isa, dot=True))
    with pytest.raises(ValueError, match="instruction set sse9"):
        native.tactic(isa="sse9")
    with pytest.raises(ValueError, match="split"):
        native.tactic(isa=isa, split="rows")
    with pytest.raises(ValueError, match="contiguous bfloat16"):
        native.view(torch.zeros(5, 96).half())


@pytest.mark.parametrize("rows", [1, 4, 40])
@pytest.mark.parametrize("op", ["linear", "experts"])
def test_the_space_holds_distinct_tactics_that_all_exist(op, rows):
    points = native.offered(op, rows, "bf16", "bf16", small=True, many=True)
    assert len({str(point) for point in points}) == len(points) > 4
    assert {point.get("block", 0) for point in points} >= {16, 32, 64}
    for point in points:
        assert tactic_of(**point).threads == (1 if point["threads"] else usable_threads())


FORKED = """
import os, sys, torch
import tunebook.kernels._native as native
weight, x = native.pack(torch.ones(256, 64), block=16), torch.ones(9, 64)
run = native.tactic(isa=native.instruction_sets()[0], threads=2, backend="pool")
def right():
    return bool((native.linear(x, weight, None, run) == 64).all())
assert right()
child = os.fork()
if child == 0:
    os._exit(0 if right() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or not right())
"""


def test_a_forked_child_gets_a_pool_of_its_own():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], timeout=60, check=False)
    assert done.returncode == 0


def test_processors_respect_the_affinity():
    code = (
        "import os, tunebook.kernels._native as n\n"
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); print(n.processors())"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "1"


def test_the_workspace_is_kept_until_it_is_released():
    x, index, scores = batch(50)
    gate_up, down = native.view(torch.ones(7, 160, 96), gated=True), native.view(torch.ones(7, 96, 80))
    native.experts(x, index, scores, gate_up, down, "relu", native.tactic(isa=native.instruction_sets()[0]))
    assert native.release_workspace() > 50 * 3 * 96
    assert native.release_workspace() == 0


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 60),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    block=st.sampled_from([0, 16, 64]),
    tactic=TACTICS,
)
def test_the_workspace_said_beforehand_is_enough_and_no_waste(tokens, dtypes, block, tactic):
    panel, weight = dtypes
    tactic = {**tactic, "threads": 1}  # only the calling thread's memory can be asked for
    run = native.tactic(**tactic)
    gate_up = laid_out(torch.ones(5, 160, 96, dtype=weight), block, gated=True)
    down = laid_out(torch.ones(5, 96, 80, dtype=weight), block)
    native.release_workspace()
    native.experts(
        torch.ones(tokens, 96, dtype=panel), torch.zeros(tokens, 2, dtype=torch.int64), torch.ones(tokens, 2), gate_up, down,
        "silu", run,
    )  # fmt: skip
    said = native.workspace("experts", (96, 80, 5, 2), rows=tokens, panel=panel, weight=weight, block=block, tactic=run)
    assert (
        native.release_workspace() <= said + 4096 <= 3 * tokens * 2 * (96 + 80 + 96 + 64) * 4 + 2 * 96 * 64 * 4 + 40000
    )
    native.linear(torch.ones(tokens, 80, dtype=panel), laid_out(torch.ones(96, 80, dtype=weight), block), None, run)
    said = native.workspace("linear", (96, 80), rows=tokens, panel=panel, weight=weight, block=block, tactic=run)
    assert native.release_workspace() <= said + 4096 <= (tokens + 16) * 128 * 4 + 96 * 64 * 4 + 8192


def test_a_workspace_of_what_is_not_there_is_refused_by_name():
    run = native.tactic(isa=native.instruction_sets()[0])
    for op, sizes, block, dtype, reason in (
        ("linear", (5, 6, 7), 0, torch.float32, "sizes are"),
        ("softmax", (5, 6), 0, torch.float32, "sizes are"),
        ("linear", (5, 6), 48, torch.float32, "block must be"),
        ("linear", (5, 6), 16, torch.float16, "bfloat16 and float32"),
    ):
        with pytest.raises(ValueError, match=reason):
            native.workspace(op, sizes, rows=1, panel=torch.float32, weight=dtype, block=block, tactic=run)


def test_the_machines_limits_are_positive_and_need_what_exists():
    packed = native.pack(torch.ones(1024, 512), block=16)
    assert native.read_bandwidth(packed, ahead=0, threads=2) > 0
    with pytest.raises(ValueError, match="packed weights"):
        native.read_bandwidth(native.view(torch.ones(4, 4)), ahead=0, threads=1)
    for isa in native.instruction_sets():
        assert native.multiply_peak(isa, threads=1) > 0
    with pytest.raises(ValueError, match="sse9"):
        native.multiply_peak("sse9", threads=1)
