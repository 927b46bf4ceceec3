"""The forward of an attached module: calls its binding, and follows the module's weights when they change."""

from __future__ import annotations

import functools
import logging
import types
from collections.abc import Callable, Sequence
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


def forward_of(
    module: Any, binding: Binding, names: Sequence[str], parameters: str, default: Callable[..., Any] | None = None
) -> AttachedForward:
    """The forward for a module with parameters called `names` (None may stand for one), of arguments `parameters`.

    `default` runs where one of them is no parameter of the module any more; without it, the binding's own.

    Looking whether the weights are still the same must cost nothing beside a small linear, so the code is written out, and
    it is a function in a class of its own: Python calls that without a detour.
    """
    forward = AttachedForward(module, binding, tuple(names))
    changed = [
        *(f'_own.get("{name}") is not _weight_{i}' for i, name in enumerate(names)),
        *(f"(_place_{i} and _weight_{i}.data_ptr() != _place_{i})" for i in range(len(names))),
        *(f"(_version_{i} is not None and _weight_{i}._version != _version_{i})" for i in range(len(names))),
    ]
    source = f"""
def _call({parameters}):
    if ({" or ".join(changed)}) and not _renew():
        return _default({parameters})
    return _serve({parameters})
"""
    space: dict[str, Any] = {
        "_own": forward._own,
        "_default": default or binding.default,
        "_serve": binding.caller(),
    }

    def renew() -> bool:
        if not forward._follow():
            return False
        for i, weight in enumerate(binding.constants[: len(names)]):
            space[f"_weight_{i}"] = weight
            space[f"_place_{i}"], space[f"_version_{i}"] = _seen(weight)
        return True

    space["_renew"] = renew
    renew()
    binding.followers.append(renew)
    exec(_compiled(source), space)  # noqa: S102 - the text is ours
    forward.__class__ = types.new_class(
        type(forward).__name__,
        (AttachedForward,),
        exec_body=lambda body: body.update(__call__=staticmethod(space["_call"])),
    )
    return forward


@functools.lru_cache(maxsize=64)
def _compiled(source: str) -> types.CodeType:
    """Modules of one kind have one source; compiling takes longer than all else in attaching one."""
    return compile(source, "<forward of an attached module>", "exec")


def _seen(weight: Any) -> tuple[int | None, int | None]:
    """What tells that a weight has moved or was written. Of a released one nothing: asking it costs, and its return is told."""
    return (None, None) if is_released(weight) else place(weight)
