"""Attaching the experts modules of Transformers' ``ExpertsInterface``."""

from __future__ import annotations

from typing import Any

from tunebook.dispatch import Binding, Scope
from tunebook.engine._modules._forward import AttachedForward, forward_of
from tunebook.engine._modules._kind import Kind
from tunebook.engine._modules._probe import default_version
from tunebook.errors import ModelError
from tunebook.kernels import ACTIVATIONS, experts


def _fits(module: Any) -> bool:
    if not (hasattr(module, "is_concatenated") and hasattr(module, "_apply_gate")):
        return False
    refusal = _refusal(module)
    if refusal:
        raise ModelError(
            f"{type(module).__name__}: {refusal}; "
            "attach(model, ops=('linear',)), or tunebook tune with --op linear, tunes the rest of the model"
        )
    return True


def _refusal(module: Any) -> str | None:
    """Why the op `experts` does not express this module, or None."""
    from transformers.integrations import moe

    if not module.has_gate:
        return "experts without a gate are not supported"
    if module.is_transposed or not module.is_concatenated:
        return "experts with transposed or interleaved weights are not supported"
    if module.has_bias or module.has_post_expert_norm:
        return "experts with biases or a norm of their own are not supported"
    if module._is_expert_parallel:
        return "experts that are split over ranks are not supported"
    if getattr(type(module), "_apply_gate", None) is not moe._default_apply_gate:
        return "experts with a gating function of their own are not supported"
    if _activation(module) is None:
        return f"the activation {type(module.act_fn).__name__} is not supported"
    return None


def _activation(module: Any) -> str | None:
    """The name under which the op knows this module's activation."""
    from transformers.activations import ACT2FN

    for field in ("hidden_act", "hidden_activation", "activation_function"):
        name = getattr(module.config, field, None)
        if isinstance(name, str) and name in ACT2FN and type(ACT2FN[name]) is type(module.act_fn):
            return name if name in ACTIVATIONS else None
    return None


def _bind(name: str, module: Any, scope: Scope) -> tuple[Binding]:
    implementation = getattr(module.config, "_experts_implementation", None) or "eager"
    binding = experts.bind(
        module.gate_up_proj,
        module.down_proj,
        _activation(module),
        scope=scope,
        name=name,
        default=module.forward,
        default_version=default_version(implementation),
    )
    return (binding,)


def _forward(module: Any, binding: Binding) -> AttachedForward:
    """[tokens, H], [tokens, K], [tokens, K] to [tokens, H]."""
    return forward_of(module, binding, ("gate_up_proj", "down_proj"), "hidden_states, top_k_index, top_k_weights")


EXPERTS = Kind(op="experts", fits=_fits, bind=_bind, forward=_forward)
