"""The runners that ship: `torch`, `onednn` and `native` for both ops, and FlashInfer's MoE by name, with what it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tunebook.kernels._experts import _onednn as onednn_experts
from tunebook.kernels._experts import _torch as torch_experts
from tunebook.kernels._linear import _onednn as onednn_linear
from tunebook.kernels._linear import _torch as torch_linear
from tunebook.kernels._native import _declare as native
from tunebook.kernels._ops import experts, linear
from tunebook.ops import requires
from tunebook.records import Problem

#: Row counts that oneDNN is told to choose its blocks for.
EXPERTS_HINTS = (16, 64)
LINEAR_HINTS = (1, 16, 64)
#: Batched products over this many neighbouring experts at a time; 0: over all.
RUNS = (0, 8)

_PLAIN: dict[str, Callable[..., Any]] = {
    "loop": torch_experts.loop,
    "loop_columns": torch_experts.loop_columns,
    "grouped_mm": torch_experts.grouped_mm,
    "padded_bmm": torch_experts.padded_bmm,
    "batched_mm": torch_experts.batched_mm,
}
_TRANSPOSED: dict[str, Callable[..., Any]] = {
    "loop": torch_experts.loop_transposed,
    "grouped_mm": torch_experts.grouped_mm_transposed,
    "padded_bmm": torch_experts.padded_bmm_transposed,
}
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


def _space(algorithms: dict[str, Callable[..., Any]]) -> list[dict[str, str | int]]:
    points: list[dict[str, str | int]] = []
    for name in algorithms:
        points += [{"algorithm": name, "run": run} for run in RUNS] if name == "padded_bmm" else [{"algorithm": name}]
    return points


def _experts_torch(*args: Any, algorithm: str, **params: Any) -> Any:
    return _PLAIN[algorithm](*args, **params)


def _experts_transposed(*args: Any, algorithm: str, **params: Any) -> Any:
    return _TRANSPOSED[algorithm](*args, **params)


def _experts_onednn(x: Any, index: Any, scores: Any, prepared: Any, *, batch_hint: int) -> Any:
    return onednn_experts.loop(x, index, scores, prepared)


def _experts_workspace(*args: Any, algorithm: str, **params: Any) -> int:
    if algorithm == "padded_bmm":
        return torch_experts.padded_workspace(*args, **params)
    return (torch_experts.batched_workspace if algorithm == "batched_mm" else torch_experts.loop_workspace)(*args)


def _grouped_fits(problem: Problem, *, algorithm: str, **_: Any) -> str | None:
    if algorithm != "grouped_mm":
        return None
    sizes = dict(problem.attrs)
    return torch_experts.grouped_refusal(int(sizes["H"]), int(sizes["I"]), _dtype(problem).itemsize)


def _linear_torch(x: Any, weight: Any, bias: Any, *, operand: str) -> Any:
    return torch_linear.columns(x, weight, bias)


def _linear_onednn(x: Any, prepared: Any, *, batch_hint: int) -> Any:
    return onednn_linear.linear(x, prepared)


def _onednn_fits(problem: Problem, **_: Any) -> str | None:
    return onednn_linear.available(_dtype(problem))


def _dtype(problem: Problem) -> torch.dtype:
    return _DTYPES.get(problem.dtypes[0], torch.float64)


def _flashinfer_experts(*args: Any) -> Any:
    raise AssertionError("dispatch offered a runner whose requirement does not hold")


def declare() -> None:
    """Declare the shipped runners."""
    experts.runner(
        "torch",
        _space(_PLAIN),
        workspace=_experts_workspace,
        supports=_grouped_fits,
        libraries=("torch",),
    )(_experts_torch)
    experts.runner(
        "torch_transposed",
        _space(_TRANSPOSED),
        prepare=lambda gate_up, down, activation, **_: torch_experts.transpose(gate_up, down, activation),
        restore=torch_experts.restore,
        layout=lambda **_: "transposed",
        workspace=_experts_workspace,
        supports=_grouped_fits,
        libraries=("torch",),
    )(_experts_transposed)
    experts.runner(
        "onednn",
        {"batch_hint": EXPERTS_HINTS},
        available=onednn_experts.available,
        prepare=onednn_experts.pack,
        restore=onednn_experts.restore,
        layout=lambda *, batch_hint: f"packed-{batch_hint}",
        workspace=lambda *args, batch_hint: onednn_experts.workspace(*args),
        supports=_onednn_fits,
        libraries=("torch",),
    )(_experts_onednn)
    experts.runner("flashinfer", available=requires(cuda=(9, 0), module="flashinfer"))(_flashinfer_experts)
    linear.runner(
        "torch",
        {"operand": ("columns",)},  # the other operand order is the default itself
        workspace=lambda *args, operand: torch_linear.columns_workspace(*args),
        libraries=("torch",),
    )(_linear_torch)
    linear.runner(
        "torch_transposed",
        prepare=torch_linear.transpose,
        restore=torch_linear.restore,
        layout=lambda: "transposed",
        workspace=torch_linear.workspace,
        libraries=("torch",),
    )(torch_linear.transposed)
    linear.runner(
        "onednn",
        {"batch_hint": LINEAR_HINTS},
        available=onednn_linear.available,
        prepare=onednn_linear.pack,
        restore=onednn_linear.restore,
        layout=lambda *, batch_hint: f"packed-{batch_hint}",
        workspace=lambda *args, batch_hint: onednn_linear.workspace(*args),
        supports=_onednn_fits,
        libraries=("torch",),
    )(_linear_onednn)
    native.declare(linear, experts)
