"""The forward of an attached module: calls its binding, and follows the module's weights when they change."""

from __future__ import annotations

import functools
import logging
import types
from collections.abc import Callable, Sequence
from typing import Any, cast

from tunebook.dispatch import Binding, is_released, place, versions
from tunebook.engine._library import LibraryCall

logger = logging.getLogger("tunebook.engine")


class AttachedForward:
    """Stands in a module's ``forward``.

    Weights that were replaced, or written in place (a state dict loaded, an adapter merged), are noticed at the next call by
    identity, place and version counter, and everything prepared from them is made again; where a weight is no parameter of
    the module any more (it was parametrised or removed), the module's own forward runs. A deep copy of the module gets the
    forward of its class: the copy is not attached.
    """

    def __init__(self, module: Any, binding: Binding, names: tuple[str, ...], parameters: str = "") -> None:
        self._module, self._binding, self._names, self._parameters = module, binding, names, parameters
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

    def traced(self) -> TracedForward:
        """What stands in the module's ``forward`` where the model is compiled; this one runs when its library op is called."""
        binding, eager = self._binding, cast(Callable[..., Any], self)
        call = LibraryCall(binding, eager)
        space: dict[str, Any] = {"_serve": call}
        source = f"def _call({self._parameters}):\n    return _serve({self._parameters})\n"
        exec(_compiled(source), space)  # noqa: S102 - the text is ours
        return TracedForward(self._module, space["_call"], binding.default, [call])

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        return _of_the_copy(self._module, memo)


class TracedForward:
    """Stands in a module's ``forward`` for ``torch.compile``: what it calls in place of bindings are library ops.

    They give no gradients and know no autocast: where gradients are on and wanted, or autocast is on, `own` is compiled, and
    released weights are made again first. A deep copy of the module gets the forward of its class.
    """

    def __init__(
        self, module: Any, call: Callable[..., Any], own: Callable[..., Any], library: Sequence[LibraryCall]
    ) -> None:
        import torch

        self._module, self._call, self._own, self._library = module, call, own, library
        self._wants_grad = any(one.binding.wants_grad() for one in library)

        def restore() -> None:
            for one in library:
                one.binding.restore(read=True)

        self._restore = torch.compiler.assume_constant_result(restore)  # it runs while `own` is being compiled

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import torch

        if torch._C._is_any_autocast_enabled() or (
            torch.is_grad_enabled() and self._asks_grad(*args, *kwargs.values())
        ):
            self._restore()
            return self._own(*args, **kwargs)
        return self._call(*args, **kwargs)

    def _asks_grad(self, *args: Any) -> bool:
        return self._wants_grad or any(getattr(value, "requires_grad", False) for value in args)

    def close(self) -> None:
        """Graphs with these calls raise RuntimeError from now on."""
        for one in self._library:
            one.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        return _of_the_copy(self._module, memo)


class Always:
    """In place of a scope: something is tuned. Whether it is, is found out when a graph runs."""

    tuned = tactics = True
    recording = False


def _of_the_copy(module: Any, memo: dict[int, Any]) -> Callable[..., Any]:
    return functools.partial(type(module).forward, memo.get(id(module), module))


def forward_of(
    module: Any, binding: Binding, names: Sequence[str], parameters: str, default: Callable[..., Any] | None = None
) -> AttachedForward:
    """The forward for a module with parameters called `names` (None may stand for one), of arguments `parameters`.

    `default` runs where one of them is no parameter of the module any more; without it, the binding's own.

    Looking whether the weights are still the same must cost nothing beside a small linear, so the code is written out, and
    it is a function in a class of its own: Python calls that without a detour.
    """
    forward = AttachedForward(module, binding, tuple(names), parameters)
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
