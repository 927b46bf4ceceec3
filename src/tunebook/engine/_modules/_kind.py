"""What a kind of module needs to be attached: how it is recognised, bound to its ops, and called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tunebook.dispatch import Binding, Scope


def _nothing(module: Any) -> Sequence[Any]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of module of a Transformers model.

    op:      what it is called in ``attach(model, ops=…)``.
    fits:    whether a module is of this kind; raises ModelError for one that is and cannot be expressed, with the remedy.
    bind:    ``bind(name, module, scope)``: its bindings, whose names begin with the module's.
    forward: ``forward(module, *bindings)``: what stands in the module's ``forward`` while it is attached.
    claims:  the submodules whose weights these bindings take: they are not attached by themselves.
    """

    op: str
    fits: Callable[[Any], bool]
    bind: Callable[[str, Any, Scope], Sequence[Binding]]
    forward: Callable[..., Any]
    claims: Callable[[Any], Sequence[Any]] = _nothing
