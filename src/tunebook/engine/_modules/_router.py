"""Attaching the top-k routers of Transformers' mixtures of experts."""

from __future__ import annotations

from typing import Any

from tunebook.dispatch import Binding, Scope
from tunebook.engine._modules._forward import AttachedForward, forward_of
from tunebook.engine._modules._kind import Kind
from tunebook.engine._modules._probe import Findings, asked, default_version, first_parameter, own_forward, stand_in
from tunebook.kernels import SCORINGS, router


def _scoring(module: Any) -> str | None:
    """The scoring by which the op computes exactly what this module does, found out on random values, or None."""
    weight, forward = module._parameters.get("weight"), own_forward(module)
    if set(module._parameters) != {"weight"} or module._modules or module._buffers or forward is None:
        return None
    if weight is None or weight.ndim != 2 or weight.is_meta or not isinstance(module.top_k, int):
        return None
    return next(
        (name for name in SCORINGS if asked(lambda name=name: _agrees(module, forward, name), type(module).__name__)),  # type: ignore[misc]
        None,
    )


def _agrees(module: Any, forward: Any, scoring: str) -> bool:
    import torch

    random, real = torch.Generator().manual_seed(0), module.weight
    weight, x = (torch.randn(size, 16, generator=random).to(real.dtype) for size in (len(real), 5))
    copied = stand_in(module, parameters={"weight": weight})
    if "hidden_dim" in copied.__dict__:
        copied.hidden_dim = 16
    found, expected = forward(copied, x), router.function(x, weight, module.top_k, scoring)
    return len(found) == 3 and all(
        one.dtype == two.dtype and torch.equal(one, two) for one, two in zip(found, expected, strict=True)
    )


_SCORINGS = Findings(_scoring)


def _fits(module: Any) -> bool:
    return type(module).__name__.endswith("Router") and hasattr(module, "top_k") and _SCORINGS.look(module)


def _bind(name: str, module: Any, scope: Scope) -> tuple[Binding]:
    constants = (module.weight, module.top_k, _SCORINGS.of(module))
    options = {"default": module.forward, "default_version": default_version("router")}
    return (router.bind(*constants, scope=scope, name=name, **options),)


def _forward(module: Any, binding: Binding) -> AttachedForward:
    """[tokens, H] to logits [tokens, E], scores [tokens, K] and index [tokens, K]."""
    return forward_of(module, binding, ("weight",), first_parameter(module))


ROUTER = Kind(op="router", fits=_fits, bind=_bind, forward=_forward)
