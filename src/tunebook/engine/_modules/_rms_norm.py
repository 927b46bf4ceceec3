"""Attaching the RMS norms of Transformers' models."""

from __future__ import annotations

from typing import Any

from tunebook.dispatch import Binding, Scope
from tunebook.engine._modules._forward import AttachedForward, forward_of
from tunebook.engine._modules._kind import Kind
from tunebook.engine._modules._probe import asked, default_version, first_parameter, own_forward, stand_in
from tunebook.kernels import rms_norm


def is_rms_norm(module: Any) -> bool:
    """Whether a module computes exactly the op `rms_norm` with its `weight` and `variance_epsilon`.

    Asked of its class's forward on a row of random values: norms of the same name multiply by 1 + weight, round elsewhere,
    or have a gate.
    """
    weight = module._parameters.get("weight")
    if not type(module).__name__.endswith("RMSNorm") or set(module._parameters) != {"weight"} or module._modules:
        return False
    if weight is None or weight.ndim != 1 or weight.is_meta or not isinstance(module.variance_epsilon, float):
        return False
    forward = own_forward(module)
    return forward is not None and asked(lambda: _agrees(module, forward, weight.dtype), type(module).__name__)


def _agrees(module: Any, forward: Any, dtype: Any) -> bool:
    import torch

    random = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(size, generator=random).to(dtype) for size in ((16,), (3, 16)))
    expected = rms_norm.function(x, weight, module.variance_epsilon)
    return torch.equal(forward(stand_in(module, parameters={"weight": weight}), x), expected)


def _fits(module: Any) -> bool:
    return hasattr(module, "variance_epsilon") and is_rms_norm(module)


def _bind(name: str, module: Any, scope: Scope) -> tuple[Binding]:
    constants = (module.weight, module.variance_epsilon)
    options = {"default": module.forward, "default_version": default_version("RMSNorm")}
    return (rms_norm.bind(*constants, scope=scope, name=name, **options),)


def _forward(module: Any, binding: Binding) -> AttachedForward:
    """[..., H] to [..., H]."""
    return forward_of(module, binding, ("weight",), first_parameter(module))


RMS_NORM = Kind(op="rms_norm", fits=_fits, bind=_bind, forward=_forward)
