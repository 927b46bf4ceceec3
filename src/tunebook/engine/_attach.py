"""Attaching: the linears and experts of a Transformers model become calls of the shipped ops, and back again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from types import TracebackType
from typing import Any

from tunebook.devices import device_of
from tunebook.dispatch import Binding, Scope
from tunebook.engine._forward import experts_forward, linear_forward
from tunebook.errors import ModelError, UsageError
from tunebook.kernels import ACTIVATIONS
from tunebook.kernels import experts as experts_op
from tunebook.kernels import linear as linear_op
from tunebook.measure import MeasurementPolicy

logger = logging.getLogger("tunebook.engine")

#: What `attach` can make tunable.
ATTACHABLE = ("linear", "experts")
_MARK = "_tunebook_former_forward"


class Attachment:
    """An attached model. `detach` (or leaving the ``with`` block) gives the model its own forwards back."""

    def __init__(self, model: Any, scope: Scope, modules: dict[str, tuple[Any, Binding]]) -> None:
        self.model = model
        self.scope = scope
        self._modules = modules

    @property
    def bindings(self) -> dict[str, Binding]:
        """The binding of each attached module, by the module's name in the model."""
        return {name: binding for name, (_, binding) in self._modules.items()}

    @property
    def prepared_bytes(self) -> int:
        """What prepared weights take now, in bytes."""
        return sum(binding.prepared.bytes for binding in self.bindings.values())

    def detach(self) -> None:
        """Restore every module and release all prepared weights. Doing it twice is harmless."""
        for module, binding in self._modules.values():
            module.__dict__.pop("forward", None)
            own = module.__dict__.pop(_MARK)
            if own is not None:  # somebody had put a forward on the module itself before it was attached
                module.__dict__["forward"] = own
            binding.close()
        self._modules = {}

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def attach(
    model: Any, ops: Sequence[str] = ATTACHABLE, *, measurement: MeasurementPolicy | str = MeasurementPolicy.EAGER
) -> Attachment:
    """Make a Transformers model's operations tunable: every ``nn.Linear``, and the experts of ``ExpertsInterface`` models.

    measurement: how the model will run, "eager" or "captured" (as a CUDA graph): tactics are timed so, and what was tuned
    one way says nothing about the other.

    Until something is tuned the model computes exactly what it did. Tactics serve inference only: a model in training
    mode, or with parameters that want gradients while gradients are on, is warned about in the log. Raises ModelError for
    experts of a form that the op `experts` does not express (named, with the way to attach the rest), for a model that is
    attached already, and for a model in which nothing can be attached; UsageError for an unknown op, and for a measurement
    that the model's device cannot follow.
    """
    device = next((parameter.device.type for parameter in model.parameters()), "cpu")
    policy = MeasurementPolicy.of(measurement, device_of(device))
    for name in ops:
        if name not in ATTACHABLE:
            raise UsageError(f"op {name!r} cannot be attached; there are {', '.join(ATTACHABLE)}")
    scope = Scope(type(model).__name__, measurement=policy.value)
    found: dict[str, tuple[Any, Binding]] = {}
    chosen = list(_modules(model, ops))
    for name, module, bind in chosen:
        if _MARK in module.__dict__:
            raise ModelError(f"{type(model).__name__} is attached already (module {name}); detach it first")
        found[name] = (module, bind(name, module, scope))
    if not found:
        raise ModelError(f"{type(model).__name__} has no module for {', '.join(ops)}: nothing can be attached")
    for module, binding in found.values():
        module.__dict__[_MARK] = module.__dict__.get("forward")
        forward = linear_forward if binding.spec is linear_op else experts_forward
        module.forward = forward(module, binding)
    logger.debug("attached %d modules of %s", len(found), type(model).__name__)
    _warn_of_gradients(model)
    return Attachment(model, scope, found)


def _warn_of_gradients(model: Any) -> None:
    """Say so where the tuned tactics would not be seen: calls that want gradients run the default."""
    import torch

    name = type(model).__name__
    if getattr(model, "training", False):
        logger.warning("%s is in training mode; tactics are for inference: call model.eval() before attaching", name)
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in model.parameters()):
        logger.warning(
            "parameters of %s want gradients, and calls with gradients on run the default; "
            "tune and serve it under torch.inference_mode(), or call model.requires_grad_(False)",
            name,
        )


Bind = Callable[[str, Any, Scope], Binding]


def _modules(model: Any, ops: Sequence[str]) -> Iterator[tuple[str, Any, Bind]]:
    from torch import nn

    for name, module in model.named_modules():
        if type(module) is nn.Linear and "linear" in ops and _plain_weight(module.weight):
            yield name, module, _bind_linear
        elif "experts" in ops and hasattr(module, "is_concatenated") and hasattr(module, "_apply_gate"):
            refusal = _experts_refusal(module)
            if refusal:
                raise ModelError(
                    f"{name} ({type(module).__name__}): {refusal}; "
                    "attach(model, ops=('linear',)), or tunebook tune with --op linear, tunes the rest of the model"
                )
            yield name, module, _bind_experts


def _plain_weight(weight: Any) -> bool:
    """A dense floating-point weight that is really there (not quantised, not on the meta device)."""
    return bool(weight.is_floating_point() and not weight.is_meta and weight.ndim == 2)


def _experts_refusal(module: Any) -> str | None:
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


def _bind_linear(name: str, module: Any, scope: Scope) -> Binding:
    import torch

    return linear_op.bind(
        module.weight,
        module.bias,
        scope=scope,
        name=name,
        default=module.forward,
        default_version=f"torch.nn.Linear {torch.__version__}",
    )


def _bind_experts(name: str, module: Any, scope: Scope) -> Binding:
    implementation = getattr(module.config, "_experts_implementation", None) or "eager"
    return experts_op.bind(
        module.gate_up_proj,
        module.down_proj,
        _activation(module),
        scope=scope,
        name=name,
        default=module.forward,
        default_version=f"transformers {implementation} {version('transformers')}",
    )
