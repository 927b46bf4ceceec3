"""Prepared weights: built once for each layout of a binding, counted in bytes, shared between buckets, released together."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any


class Prepared:
    """The weight layouts of one binding."""

    def __init__(self) -> None:
        self._held: dict[str, Any] = {}
        self._bytes: dict[str, int] = {}
        self._lock = threading.Lock()

    def get(self, layout: str, make: Callable[[], Any]) -> Any:
        """The weights in `layout`, made by `make` the first time."""
        with self._lock:
            if layout not in self._held:
                made = make()
                self._held[layout] = made
                self._bytes[layout] = tensor_bytes(made)
            return self._held[layout]

    def held(self, layout: str) -> Any:
        """The weights in a layout that is there. Raises KeyError for another."""
        return self._held[layout]

    def bytes_of(self, layout: str) -> int:
        """What a layout takes, in bytes; 0 where it is not held."""
        return self._bytes.get(layout, 0)

    @property
    def bytes(self) -> int:
        return sum(self._bytes.values())

    @property
    def layouts(self) -> tuple[str, ...]:
        return tuple(self._held)

    def keep_only(self, layouts: Collection[str]) -> None:
        """Release every layout that is not named."""
        with self._lock:
            for layout in [name for name in self._held if name not in layouts]:
                del self._held[layout], self._bytes[layout]

    def clear(self) -> None:
        self.keep_only(())


def tensor_bytes(value: Any) -> int:
    """The bytes of all tensors inside an object: containers, dataclasses and plain objects are walked, storages counted once.

    An object that is no tensor says in `nbytes` what it takes.
    """
    seen: dict[int, int] = {}
    visited: set[int] = set()
    for tensor in _tensors(value, visited):
        if not hasattr(tensor, "untyped_storage"):
            seen[id(tensor)] = tensor.nbytes
        elif getattr(tensor, "is_mkldnn", False):
            seen[id(tensor)] = _opaque_bytes(tensor)
        else:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


def _opaque_bytes(tensor: Any) -> int:
    """What oneDNN says its own packed weight takes: PyTorch sees no storage."""
    import torch

    return int(torch.ops.mkldnn._nbytes(tensor))


def _tensors(value: Any, visited: set[int]) -> Iterator[Any]:
    if id(value) in visited or value is None or isinstance(value, str | bytes | int | float | bool):
        return
    visited.add(id(value))
    if hasattr(value, "untyped_storage") or isinstance(getattr(value, "nbytes", None), int):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item, visited)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _tensors(item, visited)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name), visited)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        for item in vars(value).values():
            yield from _tensors(item, visited)
