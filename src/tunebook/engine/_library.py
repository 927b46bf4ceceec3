"""Attached ops inside ``torch.compile``: ``torch.library`` ops, which the compiler keeps as single nodes of its graph.

``tunebook::NAME(…, str binding)`` takes the op's dynamic arguments and the key of an attached binding. What serves is found
when the graph runs, so it may change after the compilation; nothing of a binding's weights is in the graph.
"""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

from tunebook.dispatch import OPS, Binding, tensors_of
from tunebook.kernels import SCORINGS, append

Call = Callable[..., Any]


class LibraryCall:
    """`call`, which serves `binding`, as a library op: for as long as this exists, or until `close`.

    call: of the op's dynamic arguments, which may give results of any strides; the library op's are contiguous.
    """

    def __init__(self, binding: Binding, call: Call) -> None:
        self.binding = binding
        self.call = call
        self.key = _key(binding)
        self.op = _declared(binding.spec.name)
        _CALLS[self.key] = self

    def __call__(self, *args: Any) -> Any:
        """The library op of the dynamic arguments; this is what is traced."""
        return self.op(*args, self.key)

    def close(self) -> None:
        """Graphs that hold the key raise RuntimeError from now on."""
        _CALLS.pop(self.key, None)


_CALLS: weakref.WeakValueDictionary[str, LibraryCall] = weakref.WeakValueDictionary()
_made: Counter[str] = Counter()


def _key(binding: Binding) -> str:
    """The binding's name, and its constants' shapes and dtypes; the same after the same steps in another process.

    The compiler's caches on disk know a graph by what is written in it, and the results' shapes follow from the constants. A
    key is never used for two bindings: a graph may outlive what it was compiled for.
    """
    tensors = (
        f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}" for value in tensors_of(binding.constants)
    )
    others = (str(value) for value in binding.constants if not hasattr(value, "untyped_storage"))
    name = " ".join((binding.name, *tensors, *others))
    _made[name] += 1
    return name if _made[name] == 1 else f"{name} #{_made[name]}"


def _found(key: str) -> LibraryCall:
    found = _CALLS.get(key)
    if found is None:
        raise RuntimeError("this graph was compiled for a model that is not attached any more; compile it again")
    return found


def _linear(x: Any, weight: Any, bias: Any) -> Any:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _experts(x: Any, index: Any, scores: Any, *constants: Any) -> Any:
    return x.new_empty(x.shape)


def _rms_norm(x: Any, weight: Any, epsilon: float) -> Any:
    return x.new_empty(x.shape, dtype=_promoted(x, weight))


def _residual_add(x: Any, residual: Any, multiplier: float) -> Any:
    return residual.new_empty(residual.shape, dtype=_promoted(x, residual))


def _add_rms_norm(x: Any, residual: Any, weight: Any, epsilon: float, multiplier: float) -> Any:
    total = _residual_add(x, residual, multiplier)
    return total, _rms_norm(total, weight, epsilon)


def _router(x: Any, weight: Any, choices: int, scoring: str) -> Any:
    import torch

    how, tokens = SCORINGS[scoring], x.shape[0]
    logits = x.new_empty((tokens, weight.shape[0]), dtype=torch.float32 if how.wide_logits else x.dtype)
    scores = x.new_empty((tokens, choices), dtype=torch.float32 if how.wide_scores else x.dtype)
    return logits, scores, x.new_empty((tokens, choices), dtype=torch.int64)


def _qkv(x: Any, cos: Any, sin: Any, wq: Any, wk: Any, wv: Any, *rest: Any) -> Any:
    dim, (batch, tokens, _) = rest[-3], x.shape
    return tuple(x.new_empty((batch, weight.shape[0] // dim, tokens, dim)) for weight in (wq, wk, wv))


def _attend(q: Any, k: Any, v: Any, mask: Any, keys: int, scaling: float) -> Any:
    batch, heads, tokens, dim = q.shape
    return q.new_empty((batch, tokens, heads, dim))


def _promoted(one: Any, other: Any) -> Any:
    import torch

    return torch.promote_types(one.dtype, other.dtype)


#: Of each op that is attached: what its results are like, as empty tensors, of the dynamic arguments and the constants.
_FAKES: dict[str, Call] = {
    "linear": _linear,
    "experts": _experts,
    "rms_norm": _rms_norm,
    "residual_add": _residual_add,
    "add_rms_norm": _add_rms_norm,
    "router": _router,
    "qkv": _qkv,
    "attend": _attend,
}


#: How the arguments' types are written in a library op's schema.
_TYPES = {"Tensor": "Tensor", "Tensor | None": "Tensor?", "int": "SymInt"}


@functools.cache
def _library() -> Any:
    import torch

    return torch.library.Library("tunebook", "FRAGMENT")


@functools.cache
def _declared(name: str) -> Any:
    """The library op of the op of that name: its dynamic arguments, then a binding's key."""
    import torch

    op = OPS[name]
    arguments = [f"{_TYPES[op.function.__annotations__[name]]} {name}" for name in op.dynamic]
    results = op.function.__annotations__["return"].removeprefix("tuple[").removesuffix("]")
    results = f"({results})" if "," in results else results
    schema = f"{name}({', '.join(arguments)}, str binding) -> {results}"

    def serve(*args: Any) -> Any:
        *dynamic, key = args
        made = _found(key).call(*dynamic)
        return made.contiguous() if isinstance(made, torch.Tensor) else tuple(value.contiguous() for value in made)

    def fake(*args: Any) -> Any:
        *dynamic, key = args
        return _FAKES[name](*dynamic, *_found(key).binding.constants)

    _declare(name, schema, serve, fake)
    return getattr(torch.ops.tunebook, name).default


def _declare(name: str, schema: str, serve: Call, fake: Call) -> None:
    """One kernel for all devices, and none for gradients: calls that want one are not compiled into a library op."""
    import torch

    library = _library()
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, serve, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tunebook::{name}", fake, lib=library)


@functools.cache
def declare_append() -> None:
    """Where a call of `append` is compiled it becomes ``tunebook::append``, whose schema says what it writes."""
    import torch

    def fake(*args: Any) -> None:
        return None

    schema = "append(Tensor k, Tensor v, Tensor(a!) keys, Tensor(b!) values, SymInt at) -> ()"
    _declare("append", schema, append, fake)
    op = torch.ops.tunebook.append.default

    @torch.compiler.substitute_in_graph(append)
    def _(k: Any, v: Any, keys: Any, values: Any, at: int) -> None:
        op(k, v, keys, values, at)
