"""Kernels for test_triton.py, declared while TRITON_INTERPRET=1: Triton's interpreter runs them on CPU tensors."""
# mypy: ignore-errors
# Triton's language is no Python to a type checker, and the package need not be installed.

from __future__ import annotations

import triton
import triton.language as tl

import tunebook.integrations.triton as tuned

#: What the hooks below were called with, in order.
HOOKS: list[str] = []


def configs(*blocks: int, **options):
    return [triton.Config({"BLOCK": block}, num_warps=4 if block < 64 else 8, **options) for block in blocks]


@tuned.op(name="test::add", outputs=["out_ptr"])
@triton.autotune(configs=configs(16, 32, 64), key=["n"])
@triton.jit
def add(x_ptr, y_ptr, out_ptr, n, scale, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    total = tl.load(x_ptr + at, mask=mask) + tl.load(y_ptr + at, mask=mask)
    tl.store(out_ptr + at, total * scale, mask=mask)


@tuned.op(name="test::wrong", outputs=["out_ptr"])
@triton.autotune(configs=configs(16, 32, 64), key=["n"])
@triton.jit
def wrong(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """With blocks of 32 it forgets the last element of each, with blocks of 64 it is off."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    if BLOCK == 32:
        mask = mask & (at % 32 != 31)
    tl.store(out_ptr + at, tl.load(x_ptr + at, mask=mask) + (1.0 if BLOCK == 64 else 0.0), mask=mask)


@tuned.op(name="test::accumulate")
@triton.autotune(configs=configs(16, 32), key=["n"], restore_value=["acc_ptr"], reset_to_zero=["seen_ptr"])
@triton.jit
def accumulate(x_ptr, acc_ptr, seen_ptr, n, BLOCK: tl.constexpr):
    """Adds x to acc, and counts in seen how often each element was written."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    tl.store(acc_ptr + at, tl.load(acc_ptr + at, mask=mask) + tl.load(x_ptr + at, mask=mask), mask=mask)
    tl.store(seen_ptr + at, tl.load(seen_ptr + at, mask=mask) + 1, mask=mask)


@tuned.op(name="test::transpose", outputs=["out_ptr"])
@triton.autotune(configs=configs(4, 8), key=["rows", "columns"])
@triton.heuristics({"EVEN": lambda args: args["columns"] % args["BLOCK"] == 0})
@triton.jit
def copy_rows(
    x_ptr, out_ptr, rows, columns, x_row, x_column, out_row, out_column, BLOCK: tl.constexpr, EVEN: tl.constexpr
):
    """Any strides, one program a row and a block of columns."""
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(0)
    if EVEN:
        tl.store(out_ptr + row * out_row + at * out_column, tl.load(x_ptr + row * x_row + at * x_column))
    else:
        mask = at < columns
        value = tl.load(x_ptr + row * x_row + at * x_column, mask=mask)
        tl.store(out_ptr + row * out_row + at * out_column, value, mask=mask)


def prune(configs, named_args, **kwargs):
    return [config for config in configs if config.kwargs["BLOCK"] <= named_args["n"]][1:]


@tuned.op(name="test::pruned", outputs=["out_ptr"])
@triton.autotune(configs=configs(16, 32, 64, 128), key=["n"], prune_configs_by={"early_config_prune": prune})
@triton.jit
def pruned(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + at, tl.load(x_ptr + at, mask=at < n), mask=at < n)


@tuned.op(name="test::hooked", outputs=["out_ptr"])
@triton.autotune(
    configs=[
        triton.Config({"BLOCK": 16}),
        triton.Config({"BLOCK": 32}, pre_hook=lambda args: HOOKS.append(f"config {args['BLOCK']} {args['n']}")),
    ],
    key=["n"],
    pre_hook=lambda args, reset_only=False: HOOKS.append("kernel"),
)
@triton.jit
def hooked(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + at, tl.load(x_ptr + at, mask=at < n), mask=at < n)


@tuned.op(name="test::partly", outputs=["out_ptr"])
@triton.autotune(configs=configs(16, 32), key=["n"])
@triton.jit
def partly(x_ptr, bias_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """Writes even places alone; the odd ones stay."""
    at = 2 * (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))
    value = tl.load(x_ptr + at, mask=at < n)
    if bias_ptr is not None:
        value += tl.load(bias_ptr + at, mask=at < n)
    tl.store(out_ptr + at, value, mask=at < n)


@tuned.op(name="test::undeclared", outputs=["out_ptr"])
@triton.autotune(configs=configs(16, 32), key=["n"])
@triton.jit
def undeclared(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x_ptr + at, mask=at < n)
    tl.store(out_ptr + at, value, mask=at < n)
    tl.store(x_ptr + at, value + 1, mask=at < n)


@triton.autotune(configs=configs(16, 32), key=["n"])
@triton.jit
def bare(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + at, tl.load(x_ptr + at, mask=at < n), mask=at < n)
