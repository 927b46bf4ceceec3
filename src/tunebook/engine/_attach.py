"""Attaching: modules of a Transformers model become calls of the shipped ops, and back again."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any

from tunebook.devices import device_of
from tunebook.dispatch import Binding, Scope, releasable_bytes, tensors_of
from tunebook.engine._modules import KINDS, Kind, TracedForward
from tunebook.errors import ModelError, UsageError
from tunebook.measure import MeasurementPolicy

logger = logging.getLogger("tunebook.engine")

#: What `attach` can make tunable.
ATTACHABLE = tuple(dict.fromkeys(kind.op for kind in reversed(KINDS)))
_MARK = "_tunebook_former_forward"


class Attachment:
    """An attached model. `detach` (or leaving the ``with`` block) gives the model its own forwards back."""

    def __init__(self, model: Any, scope: Scope, modules: Sequence[tuple[Any, tuple[Binding, ...]]]) -> None:
        self.model = model
        self.scope = scope
        self._modules = list(modules)
        self._compiling = False
        self._forwards: dict[Any, tuple[Any, TracedForward]] = {}  #: eager and traced, once both are there

    @property
    def bindings(self) -> dict[str, Binding]:
        """The bindings of the attached modules, by name: the module's in the model, with a suffix where it has several."""
        return {binding.name: binding for _, bindings in self._modules for binding in bindings}

    @property
    def prepared_bytes(self) -> int:
        """What prepared weights take now, in bytes."""
        return sum(binding.prepared.bytes for binding in self.bindings.values())

    @property
    def released_bytes(self) -> int:
        """What the original weights that were given back would take, in bytes."""
        return sum(binding.releasable for binding in self.bindings.values() if binding.released)

    def for_compile(self, on: bool = True) -> AbstractContextManager[object]:
        """Make the attached modules fit for ``torch.compile``: call this before the model is compiled.

        All their calls become ``torch.library`` ops, which the compiler keeps as single nodes, and what serves them is looked
        up when the graph runs. With gradients that are wanted, or autocast, a module is compiled from its own code. A library
        op costs a microsecond or two more than the dictionary of eager calls: switch back (`on` False) to run eagerly. As a
        context, ``with attachment.for_compile(): …``, it puts back on leaving what was before.
        """
        before, self._compiling = self._compiling, on
        for module, _ in self._modules:
            if module not in self._forwards:
                eager = module.__dict__["forward"]
                self._forwards[module] = (eager, eager.traced())
            module.forward = self._forwards[module][on]
        context = ExitStack()
        context.callback(self.for_compile, before)
        return context

    def detach(self) -> None:
        """Restore every module, bit for bit, and release all prepared weights. Doing it twice is harmless."""
        for module, bindings in self._modules:
            module.__dict__.pop("forward", None)
            own = module.__dict__.pop(_MARK)
            if own is not None:  # somebody had put a forward on the module itself before it was attached
                module.__dict__["forward"] = own
            for binding in bindings:
                binding.close()
        for _, traced in self._forwards.values():
            traced.close()
        self._modules = []
        self._forwards = {}

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def attach(
    model: Any, ops: Sequence[str] = ATTACHABLE, *, measurement: MeasurementPolicy | str = MeasurementPolicy.EAGER
) -> Attachment:
    """Make a Transformers model's operations tunable: every ``nn.Linear``, the experts of ``ExpertsInterface`` models, and
    the RMS norms, top-k routers and decoder layers that compute exactly what an op does.

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
    found = list(_found(model, ops))
    for name, module, _ in found:
        if _MARK in module.__dict__:
            raise ModelError(f"{type(model).__name__} is attached already (module {name}); detach it first")
    if not found:
        raise ModelError(f"{type(model).__name__} has no module for {', '.join(ops)}: nothing can be attached")
    scope = Scope(type(model).__name__, device=device, measurement=policy.value)
    owners = _owners(model)
    attached: list[tuple[Any, tuple[Binding, ...]]] = []
    for name, module, kind in found:
        bindings = tuple(kind.bind(name, module, scope))
        for binding in bindings:
            sole = all(owners[value.untyped_storage().data_ptr()] == 1 for value in tensors_of(binding.constants))
            binding.releasable = releasable_bytes(binding.constants) if sole else 0
        module.__dict__[_MARK] = module.__dict__.get("forward")
        module.forward = kind.forward(module, *bindings)
        attached.append((module, bindings))
    logger.debug("attached %d modules of %s", len(attached), type(model).__name__)
    _warn_of_gradients(model)
    return Attachment(model, scope, attached)


def _found(model: Any, ops: Sequence[str]) -> Iterator[tuple[str, Any, Kind]]:
    """The modules to attach. One whose weights another's binding takes is left out."""
    claimed: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in claimed:
            continue
        try:
            kind = next((kind for kind in KINDS if kind.op in ops and kind.fits(module)), None)
        except ModelError as error:
            raise ModelError(f"{name}: {error}") from None
        if kind is not None:
            claimed.update(id(part) for part in kind.claims(module))
            yield name, module, kind


def _owners(model: Any) -> Counter[int]:
    """How many modules hold each storage, by its address: what is held twice (an embedding that is the LM head) is shared."""
    held: Counter[int] = Counter()
    for module in model.modules():
        for value in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            held[value.untyped_storage().data_ptr()] += 1
    return held


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
