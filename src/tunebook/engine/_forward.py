"""The forward of an attached module: calls its binding, and follows the module's weights when they change."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from tunebook.dispatch import Binding, versions

logger = logging.getLogger("tunebook.engine")


class AttachedForward:
    """Stands in a module's ``forward``.

    Weights that were replaced, or written in place (a state dict loaded, an adapter merged), are noticed at the next call by
    identity and version counter, and everything prepared from them is made again. A deep copy of the module gets the forward
    of its class: the copy is not attached.
    """

    __slots__ = ("_binding", "_call", "_module", "_names", "_own", "_seen", "_versions")

    def __init__(self, module: Any, binding: Binding, names: tuple[str, ...]) -> None:
        self._module, self._binding, self._names = module, binding, names
        self._call: Callable[..., Any] = binding.caller()
        self._own: dict[str, Any] = module._parameters
        self._note()

    def _note(self) -> None:
        self._seen = tuple(self._own.get(name) for name in self._names)
        self._versions = versions(self._seen)

    def _follow(self) -> None:
        """Serve the module's present weights."""
        rest = self._binding.constants[len(self._names) :]
        self._note()
        self._binding.rebind((*self._seen, *rest))
        logger.info("the weights of %s have changed: what was prepared from them is made again", self._binding.name)

    def _changed(self) -> bool:
        own = self._own
        now = tuple([own.get(name) for name in self._names])
        return any(map(_differs, now, self._seen)) or versions(now) != self._versions

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        copied = memo.get(id(self._module), self._module)
        return functools.partial(type(self._module).forward, copied)


def _differs(one: Any, other: Any) -> bool:
    return one is not other


class LinearForward(AttachedForward):
    """The forward of an ``nn.Linear``: input [..., K] to [..., N]. A small one takes microseconds, so the look is spelt out."""

    __slots__ = ("_place", "_version", "_weight")

    def __init__(self, module: Any, binding: Binding) -> None:
        super().__init__(module, binding, ("weight", "bias"))

    def _note(self) -> None:
        super()._note()
        self._weight: Any = self._seen[0]
        self._version = None if self._weight is None or self._weight.is_inference() else self._weight._version
        self._place = 0 if self._weight is None else self._weight.data_ptr()

    def __call__(self, input: Any) -> Any:
        weight: Any = self._own["weight"]
        if (
            weight is not self._weight
            or weight.data_ptr() != self._place
            or (self._version is not None and weight._version != self._version)
        ):
            self._follow()
        return self._call(input)


class ExpertsForward(AttachedForward):
    """The forward of an experts module of Transformers: [tokens, H], [tokens, K], [tokens, K] to [tokens, H]."""

    __slots__ = ()

    def __init__(self, module: Any, binding: Binding) -> None:
        super().__init__(module, binding, ("gate_up_proj", "down_proj"))

    def __call__(self, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
        if self._changed():
            self._follow()
        return self._call(hidden_states, top_k_index, top_k_weights)
