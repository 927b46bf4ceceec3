"""A call of a kernel as values: what is left of it when the caller's tensors are gone, so that it can be made again elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Call(NamedTuple):
    """What a call has beside its tensors. `tuple(call)` is plain wherever its values are: a worker process can be given it.

    `default` is the place of the configuration that runs untuned; `grids` has one for each configuration, or why there is
    none; `views` are the shapes and strides of tensors that are not contiguous; `whole` names the outputs of which a call
    writes every element and reads none.
    """

    default: int
    grids: tuple[tuple[int, ...] | str, ...]
    positional: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]
    views: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    whole: tuple[str, ...] = ()

    def arguments(self, names: tuple[str, ...], tensors: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and the keyword arguments, with `tensors` in their places."""
        named = dict(zip(names, self.positional, strict=False))
        args = tuple(tensors.get(name, value) for name, value in named.items())
        return args, {name: tensors.get(name, value) for name, value in self.keywords}


class Live(NamedTuple):
    """The call that is being made: the caller's own arguments, which a launch writes to."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    grid: Any


def is_tensor(value: Any) -> bool:
    return hasattr(value, "untyped_storage")


def flat(tensor: Any) -> Any:
    """`tensor` where it is contiguous; else all elements from its first to its last, whatever lies between, in one dimension.

    A kernel that is told strides finds its elements in a copy of these as it does in the tensor. No gradient is asked for.
    """
    import torch

    if type(tensor) is not torch.Tensor or tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.is_contiguous():
        return tensor
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((last + 1 if tensor.numel() else 0,), (1,), tensor.storage_offset())


def plain(value: Any) -> bool:
    """Whether a value that is no tensor holds none either: numbers, texts, dtypes, functions of Triton's, and tuples of them."""
    if isinstance(value, tuple | list):
        return all(map(plain, value))
    if value is None or isinstance(value, bool | int | float | str):
        return True
    return type(value).__name__ in ("dtype", "constexpr", "constexpr_type", "JITFunction", "InterpretedFunction")


def filled(tensor: Any, byte: int) -> Any:
    """A tensor like this one with every byte set: 0xFF makes each float a NaN and each signed integer -1."""
    import torch

    made = torch.empty_like(tensor)
    if made.dtype == torch.bool:
        return made.fill_(bool(byte))
    made.reshape(-1).view(torch.uint8).fill_(byte)
    return made


def same_bits(one: Any, other: Any) -> bool:
    """Whether two contiguous tensors of one dtype and shape hold the same bytes."""
    import torch

    return bool(torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)))
