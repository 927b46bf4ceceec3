"""CPU kernels for inference: linear layers and gated mixtures of experts, on packed or row-major weights.

`pack` makes a packed copy of a weight, `view` reads one where it lies; `tactic` says how a call is to be computed;
`linear` and `experts` compute. `offered` lists the tactics that are worth trying for a shape. All of them need the compiled
kernels; `unavailable` says whether they are there, and why not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tunebook.kernels._native._available import unavailable

if TYPE_CHECKING:
    from tunebook.kernels._native._calls import (
        ACTIVATIONS,
        bind_experts,
        bind_linear,
        experts,
        linear,
        release_workspace,
        workspace,
    )
    from tunebook.kernels._native._limits import multiply_peak, read_bandwidth
    from tunebook.kernels._native._rules import offered
    from tunebook.kernels._native._tactic import instruction_sets, processors, tactic
    from tunebook.kernels._native._weights import Weights, in_place_refusal, pack, view

_WHERE = {
    **dict.fromkeys(
        ("ACTIVATIONS", "bind_experts", "bind_linear", "experts", "linear", "release_workspace", "workspace"),
        "_calls",
    ),
    **dict.fromkeys(("multiply_peak", "read_bandwidth"), "_limits"),
    "offered": "_rules",
    **dict.fromkeys(("instruction_sets", "processors", "tactic"), "_tactic"),
    **dict.fromkeys(("Weights", "in_place_refusal", "pack", "view"), "_weights"),
}


def __getattr__(name: str) -> Any:
    """The compiled part is imported when something of it is asked for."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


__all__ = [
    "ACTIVATIONS",
    "Weights",
    "bind_experts",
    "bind_linear",
    "experts",
    "in_place_refusal",
    "instruction_sets",
    "linear",
    "multiply_peak",
    "offered",
    "pack",
    "processors",
    "read_bandwidth",
    "release_workspace",
    "tactic",
    "unavailable",
    "view",
    "workspace",
]
