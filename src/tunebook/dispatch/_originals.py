"""Weights whose memory is given back while packed copies serve, and which come back by themselves as soon as they are read."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tunebook.ops import Runner
from tunebook.records import Tactic

#: Where a released parameter keeps what brings it back.
_RESTORE = "_tunebook_restore"

#: What may be asked of a released parameter without its values.
_ABOUT = frozenset(
    (
        *(
            "shape",
            "size",
            "dim",
            "ndim",
            "dtype",
            "device",
            "layout",
            "numel",
            "nelement",
            "element_size",
            "itemsize",
            "nbytes",
        ),
        *(
            "requires_grad",
            "requires_grad_",
            "is_leaf",
            "grad",
            "grad_fn",
            "register_hook",
            "retains_grad",
            "_backward_hooks",
        ),
        *(
            "_version",
            "is_inference",
            "data_ptr",
            "untyped_storage",
            "__len__",
            "names",
            "is_cpu",
            "is_cuda",
            "is_meta",
        ),
        *("is_floating_point", "is_complex", "is_sparse", "is_quantized", "is_mkldnn", "is_nested"),
    )
)


def tensors_of(constants: Iterable[Any]) -> tuple[Any, ...]:
    """The tensors among an op's constants, in order."""
    return tuple(value for value in constants if hasattr(value, "untyped_storage"))


def releasable_bytes(constants: Sequence[Any]) -> int:
    """What releasing an op's constants would free, in bytes; 0 where one is no plain parameter with a storage of its own."""
    import torch

    tensors = tensors_of(constants)
    sizes = [value.untyped_storage().nbytes() for value in tensors]
    plain = all(
        type(value) is torch.nn.Parameter and value.is_contiguous() and size == value.numel() * value.element_size()
        for value, size in zip(tensors, sizes, strict=True)
    )
    return sum(sizes) if plain else 0


def release(parameter: Any, restore: Callable[[], None]) -> None:
    """Give a parameter's memory back. It keeps identity, shape and dtype; whatever reads it calls `restore` first.

    Reading goes through PyTorch's ``__torch_function__``: the parameter's class is exchanged for one that has it. What goes
    past it, in C++, finds NaN.
    """
    import torch

    with torch.inference_mode(parameter.is_inference()):
        parameter.data = parameter.new_full((), torch.nan).expand(parameter.shape)
    parameter.__dict__[_RESTORE] = restore
    parameter.__class__ = _released_parameter()


def is_released(value: Any) -> bool:
    """Whether a parameter's memory was given back by `release`."""
    return _RESTORE in getattr(value, "__dict__", ())


def fill(parameter: Any, values: Any) -> None:
    """Make a released parameter an ordinary one again, with the memory of `values`, of the same shape and dtype."""
    import torch

    parameter.__class__ = torch.nn.Parameter
    del parameter.__dict__[_RESTORE]
    with torch.inference_mode(parameter.is_inference()):
        parameter.data = values


def converted(runner: Runner, constants: tuple[Any, ...], tactic: Tactic) -> Any:
    """A layout in the memory of its originals where the runner can, else in memory of its own."""
    import torch

    with torch.inference_mode():
        made = runner.convert(*constants, **tactic.kwargs) if runner.convert is not None else None
        if made is None and runner.prepare is not None:
            made = runner.prepare(*constants, **tactic.kwargs)
        return made


def restored(runner: Runner, prepared: Any, constants: Sequence[Any], last: bool) -> Sequence[Any]:
    """The tensors that a layout was made from, of the constants' kind; `last`: nothing will use the layout any more."""
    import torch

    assert runner.restore is not None
    inference = any(value.is_inference() for value in tensors_of(constants))
    with torch.inference_mode(inference), torch.no_grad():
        return runner.restore(prepared, last=last)


@functools.cache
def _released_parameter() -> type:
    import torch

    class ReleasedParameter(torch.nn.Parameter):
        """A parameter whose packed form serves; it is made again from that when it is read."""

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            self.__dict__[_RESTORE]()
            return copy.deepcopy(self, memo)

        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            name = (
                getattr(getattr(func, "__self__", None), "__name__", None)
                if func.__name__ == "__get__"
                else func.__name__
            )
            if name not in _ABOUT:
                for tensor in _released_in((args, kwargs)):
                    tensor.__dict__[_RESTORE]()
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))

    return ReleasedParameter


def _released_in(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from _released_in(item)
    elif isinstance(value, dict):
        yield from _released_in(list(value.values()))
    elif is_released(value):
        yield value
