"""Attached modules inside ``torch.compile``: their calls become ``torch.library`` ops, which the compiler does not look into."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable
from typing import Any

from tunebook.dispatch import Binding

#: The bindings that library ops serve, by the number that stands for them in a compiled graph.
_BINDINGS: weakref.WeakValueDictionary[int, Binding] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def library_forward(binding: Binding) -> Callable[..., Any] | None:
    """A forward that calls the op's ``torch.library`` form for `binding`; None for an op that has none.

    ``tunebook::linear(x, binding)`` and ``tunebook::experts(x, index, scores, binding)``: the compiler keeps them as single
    nodes, without a graph break, and what the binding serves may change afterwards.
    """
    ops = _ops()
    op = ops.get(binding.spec.name)
    if op is None:
        return None
    number = next(_numbers)
    _BINDINGS[number] = binding
    if binding.spec.name == "linear":
        outputs = int(binding.constants[0].shape[0])  # not asked for in the graph: the weight may be released
        return lambda input: op(input, number, outputs)
    return lambda hidden_states, top_k_index, top_k_weights: op(hidden_states, top_k_index, top_k_weights, number)


def _serve(number: int) -> Callable[..., Any]:
    binding = _BINDINGS.get(number)
    if binding is None:
        raise RuntimeError("this graph was compiled for a model that is not attached any more; compile it again")
    return binding.caller()


@functools.cache
def _ops() -> dict[str, Any]:
    """Declare the library ops, once a process."""
    import torch
    from torch import Tensor

    @torch.library.custom_op(
        "tunebook::linear", mutates_args=(), schema="(Tensor x, int binding, int outputs) -> Tensor"
    )
    def linear(x: Tensor, binding: int, outputs: int) -> Tensor:
        result: Tensor = _serve(binding)(x)
        return result

    @linear.register_fake
    def _(x: Tensor, binding: int, outputs: int) -> Tensor:
        return x.new_empty((*x.shape[:-1], outputs))

    @torch.library.custom_op(
        "tunebook::experts", mutates_args=(), schema="(Tensor x, Tensor index, Tensor scores, int binding) -> Tensor"
    )
    def experts(x: Tensor, index: Tensor, scores: Tensor, binding: int) -> Tensor:
        result: Tensor = _serve(binding)(x, index, scores)
        return result

    @experts.register_fake
    def _(x: Tensor, index: Tensor, scores: Tensor, binding: int) -> Tensor:
        return torch.empty_like(x)

    return {"linear": linear, "experts": experts}
