"""The runners that ship: `torch` and `onednn` for both ops, and FlashInfer's MoE by name, with what it needs."""

from __future__ import annotations

from typing import Any

import torch

from tunebook.kernels._ops import experts, linear
from tunebook.kernels.experts import _onednn as onednn_experts
from tunebook.kernels.experts import _torch as torch_experts
from tunebook.kernels.linear import _onednn as onednn_linear
from tunebook.kernels.linear import _torch as torch_linear
from tunebook.ops import requires
from tunebook.records import Problem

#: Row counts that oneDNN is told to choose its blocks for.
BATCH_HINTS = (1, 16, 128)

_EXPERTS = {
    "loop": torch_experts.loop,
    "loop_vector": torch_experts.loop_vector,
    "loop_columns": torch_experts.loop_columns,
    "padded_bmm": torch_experts.padded_bmm,
    "grouped_mm": torch_experts.grouped_mm,
    "grouped_mm_columns": torch_experts.grouped_mm_columns,
    "batched_mm": torch_experts.batched_mm,
}
_EXPERTS_TRANSPOSED = {
    "loop": torch_experts.loop_transposed,
    "padded_bmm": torch_experts.padded_bmm_transposed,
    "grouped_mm": torch_experts.grouped_mm_transposed,
}
_EXPERTS_ONEDNN = {
    "whole": (onednn_experts.pack, onednn_experts.loop),
    "split": (onednn_experts.pack_split, onednn_experts.loop_split),
}


def _experts_torch(*args: Any, algorithm: str) -> Any:
    return _EXPERTS[algorithm](*args)


def _experts_workspace(*args: Any, algorithm: str) -> int:
    if algorithm == "batched_mm":
        return torch_experts.batched_workspace(*args)
    return (torch_experts.padded_workspace if algorithm == "padded_bmm" else torch_experts.loop_workspace)(*args)


def _grouped_fits(problem: Problem, *, algorithm: str) -> str | None:
    if not algorithm.startswith("grouped_mm"):
        return None
    sizes = dict(problem.attrs)
    width = 4 if problem.dtypes[0] == "fp32" else 2
    return torch_experts.grouped_refusal(int(sizes["H"]), int(sizes["I"]), width)


def _experts_transposed(x: Any, index: Any, scores: Any, prepared: Any, *, algorithm: str) -> Any:
    return _EXPERTS_TRANSPOSED[algorithm](x, index, scores, prepared)


def _experts_onednn(x: Any, index: Any, scores: Any, prepared: Any, *, gate: str, batch_hint: int) -> Any:
    return _EXPERTS_ONEDNN[gate][1](x, index, scores, prepared)


def _pack_experts(gate_up: Any, down: Any, activation: str, *, gate: str, batch_hint: int) -> Any:
    return _EXPERTS_ONEDNN[gate][0](gate_up, down, activation, batch_hint)


_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


def _onednn_fits(problem: Problem, **_: Any) -> str | None:
    return onednn_linear.available(_DTYPES.get(problem.dtypes[0], torch.int8))


def _linear_torch(x: Any, weight: Any, bias: Any, *, operand: str) -> Any:
    return torch_linear.columns(x, weight, bias)


def _linear_onednn(x: Any, prepared: Any, *, batch_hint: int) -> Any:
    return onednn_linear.linear(x, prepared)


def declare() -> None:
    """Declare the shipped runners."""
    experts.runner(
        "torch",
        {"algorithm": tuple(_EXPERTS)},
        workspace=_experts_workspace,
        supports=_grouped_fits,
        libraries=("torch",),
    )(_experts_torch)
    experts.runner(
        "torch_transposed",
        {"algorithm": tuple(_EXPERTS_TRANSPOSED)},
        prepare=lambda gate_up, down, activation, *, algorithm: torch_experts.transpose(gate_up, down, activation),
        layout=lambda *, algorithm: "transposed",
        workspace=_experts_workspace,
        supports=_grouped_fits,
        libraries=("torch",),
    )(_experts_transposed)
    experts.runner(
        "onednn",
        {"gate": ("whole", "split"), "batch_hint": BATCH_HINTS},
        available=onednn_linear.available,
        prepare=_pack_experts,
        layout=lambda *, gate, batch_hint: f"packed-{gate}-{batch_hint}",
        workspace=lambda *args, gate, batch_hint: onednn_experts.workspace(*args),
        supports=_onednn_fits,
        libraries=("torch",),
    )(_experts_onednn)
    linear.runner(
        "torch",
        {"operand": ("columns",)},  # rows times weight is the default itself
        workspace=lambda *args, operand: torch_linear.columns_workspace(*args),
        libraries=("torch",),
    )(_linear_torch)
    linear.runner(
        "torch_transposed",
        prepare=torch_linear.transpose,
        layout=lambda: "transposed",
        workspace=torch_linear.workspace,
        libraries=("torch",),
    )(torch_linear.transposed)
    linear.runner(
        "onednn",
        {"batch_hint": BATCH_HINTS},
        available=onednn_linear.available,
        prepare=onednn_linear.pack,
        layout=lambda *, batch_hint: f"packed-{batch_hint}",
        workspace=lambda *args, batch_hint: onednn_linear.workspace(*args),
        supports=_onednn_fits,
        libraries=("torch",),
    )(_linear_onednn)
    experts.runner("flashinfer", available=requires(cuda=(9, 0), module="flashinfer"))(_flashinfer_experts)


def _flashinfer_experts(*args: Any) -> Any:
    raise AssertionError("dispatch offered a runner whose requirement does not hold")
