"""The forward of an attached module: calls its binding, and follows the module's weights when they change."""

from __future__ import annotations

import functools
import logging
import types
from collections.abc import Callable
from typing import Any

from tunebook.dispatch import Binding, is_released, place, versions

logger = logging.getLogger("tunebook.engine")


class AttachedForward:
    """Stands in a module's ``forward``.

    Weights that were replaced, or written in place (a state dict loaded, an adapter merged), are noticed at the next call by
    identity, place and version counter, and everything prepared from them is made again; where a weight is no parameter of
    the module any more (it was parametrised or removed), the module's own forward runs. A deep copy of the module gets the
    forward of its class: the copy is not attached.
    """

    def __init__(self, module: Any, binding: Binding, names: tuple[str, ...]) -> None:
        self._module, self._binding, self._names = module, binding, names
        self._own: dict[str, Any] = module._parameters

    def _follow(self) -> bool:
        """Serve the module's present weights. False where it has none of that name: its own forward must run."""
        if any(name not in self._own for name in self._names):
            return False
        now = tuple(self._own[name] for name in self._names)
        binding = self._binding
        rest = binding.constants[len(self._names) :]
        same = all(one is other for one, other in zip(now, binding.constants, strict=False))
        if not same or versions((*now, *rest)) != binding.versions:
            binding.rebind((*now, *rest))
            logger.info("the weights of %s have changed: what was prepared from them is made again", binding.name)
        return True

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        copied = memo.get(id(self._module), self._module)
        return functools.partial(type(self._module).forward, copied)


def forward_of(module: Any, binding: Binding, names: tuple[str, str], parameters: str) -> AttachedForward:
    """The forward for a module with two parameters called `names` (the second may be None), of arguments `parameters`.

    Looking whether the weights are still the same must cost nothing beside a small linear, so the code is written out, and
    it is a function in a class of its own: Python calls that without a detour.
    """
    forward = AttachedForward(module, binding, names)
    first, second = names
    source = f"""
def _call({parameters}):
    if (
        _own.get("{first}") is not _one
        or _own.get("{second}") is not _two
        or (_place_one and _one.data_ptr() != _place_one)
        or (_version_one is not None and _one._version != _version_one)
        or (_place_two and _two.data_ptr() != _place_two)
        or (_version_two is not None and _two._version != _version_two)
    ):
        if not _renew():
            return _default({parameters})
    return _serve({parameters})
"""
    space: dict[str, Any] = {"_own": forward._own, "_default": binding.default, "_serve": binding.caller()}

    def renew() -> bool:
        if not forward._follow():
            return False
        one, two = binding.constants[:2]
        space["_one"], space["_two"] = one, two
        space["_place_one"], space["_version_one"] = _seen(one)
        space["_place_two"], space["_version_two"] = _seen(two)
        return True

    space["_renew"] = renew
    renew()
    binding.followers.append(renew)
    exec(compile(source, f"<forward of {binding.name}>", "exec"), space)  # noqa: S102 - the text is ours
    forward.__class__ = types.new_class(
        type(forward).__name__,
        (AttachedForward,),
        exec_body=lambda body: body.update(__call__=staticmethod(space["_call"])),
    )
    return forward


def _seen(weight: Any) -> tuple[int | None, int | None]:
    """What tells that a weight has moved or was written. Of a released one nothing: asking it costs, and its return is told."""
    return (None, None) if is_released(weight) else place(weight)
