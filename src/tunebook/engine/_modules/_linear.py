"""Attaching ``nn.Linear``."""

from __future__ import annotations

from typing import Any

from tunebook.dispatch import Binding, Scope
from tunebook.engine._modules._forward import AttachedForward, forward_of
from tunebook.engine._modules._kind import Kind
from tunebook.kernels import linear


def _fits(module: Any) -> bool:
    """A plain linear with a dense floating-point weight that is really there (not quantised, not on the meta device)."""
    from torch import nn

    if type(module) is not nn.Linear:
        return False
    weight = module.weight
    return bool(weight.is_floating_point() and not weight.is_meta and weight.ndim == 2)


def _bind(name: str, module: Any, scope: Scope) -> tuple[Binding]:
    import torch

    version = f"torch.nn.Linear {torch.__version__}"
    constants = (module.weight, module.bias)
    return (linear.bind(*constants, scope=scope, name=name, default=module.forward, default_version=version),)


def _forward(module: Any, binding: Binding) -> AttachedForward:
    """input [..., K] to [..., N]."""
    return forward_of(module, binding, ("weight", "bias"), "input")


LINEAR = Kind(op="linear", fits=_fits, bind=_bind, forward=_forward)
