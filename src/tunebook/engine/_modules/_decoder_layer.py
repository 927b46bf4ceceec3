"""Attaching decoder layers: between attention and MLP one call adds the residual and normalises, and one adds at the end."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunebook.dispatch import Binding, Scope, collector
from tunebook.engine._library import LibraryCall
from tunebook.engine._modules._forward import Always, AttachedForward, TracedForward, forward_of
from tunebook.engine._modules._kind import Kind
from tunebook.engine._modules._probe import Findings, asked, default_version, own_forward, stand_in
from tunebook.engine._modules._rms_norm import is_rms_norm
from tunebook.kernels import add_rms_norm, residual_add

_FIRST, _ATTENTION, _SECOND = "input_layernorm", "self_attn", "post_attention_layernorm"


@dataclass(frozen=True, kw_only=True)
class _Wiring:
    """How a layer connects its children.

    mlp: the name of what follows the second norm. multiplier: of what a block gives, before it is added to the residual.
    defaults: what the layer hands to its attention where the caller does not. parts: of a plain block of experts, the names
    of its router and experts.
    """

    mlp: str
    multiplier: float
    defaults: dict[str, Any]
    parts: tuple[str, str] | None


def _wiring(layer: Any) -> _Wiring | None:
    """The wiring of a layer that computes norm, attention, sum, norm, MLP, sum, and nothing else; None for any other."""
    forward, rest = own_forward(layer), set(layer._modules) - {_FIRST, _ATTENTION, _SECOND}
    if forward is None or len(rest) != 1 or not {_FIRST, _ATTENTION, _SECOND} < set(layer._modules):
        return None
    if not is_rms_norm(layer._modules[_SECOND]):
        return None
    (mlp,), multiplier = rest, float(getattr(layer, "residual_multiplier", 1.0))
    defaults: dict[str, Any] = {}
    if not asked(lambda: _plain(layer, forward, mlp, multiplier, defaults), type(layer).__name__):
        return None
    return _Wiring(mlp=mlp, multiplier=multiplier, defaults=defaults, parts=_parts(layer._modules[mlp]))


def _plain(layer: Any, forward: Any, mlp: str, multiplier: float, defaults: dict[str, Any]) -> bool:
    """Runs the layer's forward on functions for children, without and with every argument that it names and one more."""
    import torch

    handed: list[dict[str, Any]] = []

    def attention(*, hidden_states: Any, **others: Any) -> tuple[Any, None]:
        handed.append(others)
        return torch.sin(hidden_states), None

    def first(x: Any) -> Any:
        return x * 3 + 1

    def second(x: Any) -> Any:
        return torch.exp(-x)

    children = {_FIRST: first, _ATTENTION: attention, _SECOND: second, mlp: torch.cos}
    copied, x = stand_in(layer, children=children), torch.linspace(-1, 1, 6, dtype=torch.float64).view(1, 2, 3)
    total = x + torch.sin(first(x)) * multiplier
    expected = total + torch.cos(second(total)) * multiplier
    _, _, *names = inspect.signature(forward).parameters.values()
    marks = {p.name: object() for p in names if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if any(p.kind is p.VAR_KEYWORD for p in names):
        marks["one_more"] = object()
    same = torch.equal(forward(copied, x), expected) and torch.equal(forward(copied, x, **marks), expected)
    bare, full = handed
    defaults.update(bare)
    return same and full == {**bare, **marks}


def _parts(block: Any) -> tuple[str, str] | None:
    """The names of router and experts in a block that does nothing but ask them, or None."""
    routers = [name for name in block._modules if name in ("gate", "router")]
    if len(routers) != 1 or set(block._modules) != {routers[0], "experts"} or own_forward(block) is None:
        return None
    return (routers[0], "experts") if asked(lambda: _only_parts(block, routers[0]), type(block).__name__) else None


def _only_parts(block: Any, name: str) -> bool:
    import torch

    def route(flat: Any) -> tuple[None, Any, Any]:
        return None, flat + 1, flat + 2

    def experts(flat: Any, index: Any, scores: Any) -> Any:
        return torch.sin(flat) + torch.cos(index) * scores

    hidden = int(getattr(block, "input_size", 3))
    x = torch.linspace(-1, 1, 2 * hidden, dtype=torch.float64).view(1, 2, hidden)
    expected = experts(x, *reversed(route(x)[1:]))
    return torch.equal(type(block).forward(stand_in(block, children={name: route, "experts": experts}), x), expected)


class _LayerForward(AttachedForward):
    """Stands in a decoder layer's ``forward``.

    While no tactic serves, in training, where a hook hangs on a part that would not be called, and for positional arguments
    beyond the first, the layer's own forward runs.
    """

    def __init__(self, layer: Any, wiring: _Wiring, both: Binding, last: Binding) -> None:
        super().__init__(layer, both, ("weight",))
        norm = layer._modules[_SECOND]
        self._layer_own: Callable[..., Any] = layer.forward
        self._scope: Scope | Always = both.scope
        self._children: dict[str, Any] = layer._modules
        self._norm = norm
        self._hooks = (norm._forward_hooks, norm._forward_pre_hooks)
        self._wiring = wiring
        self._parts = wiring.parts

        def unfused(x: Any, residual: Any) -> Any:
            total = residual_add.function(x, residual, wiring.multiplier)
            return total, self._norm(total)

        fused: Any = forward_of(norm, both, ("weight",), "x, residual", unfused)
        self._last = last
        self._fused = fused.__call__
        self._add = last.caller()

    def traced(self) -> TracedForward:
        """The same forward of library ops."""
        fused, add = LibraryCall(self._binding, self._fused), LibraryCall(self._last, self._add)
        call = copy.copy(self)
        call._scope, call._fused, call._add = Always(), fused, add
        return TracedForward(self._module, call, self._layer_own, (fused, add))

    def _serves(self) -> bool:
        """Whether the ops are to be called now."""
        scope = self._scope
        if not (scope.tuned and scope.tactics) and collector() is None:
            return False
        hooks, before = self._hooks
        return not (hooks or before or self._module.training) and self._children[_SECOND] is self._norm

    def __call__(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        if args or not self._serves():
            return self._layer_own(hidden_states, *args, **kwargs)
        children, wiring = self._children, self._wiring
        attended, _ = children[_ATTENTION](
            hidden_states=children[_FIRST](hidden_states), **{**wiring.defaults, **kwargs}
        )
        total, normed = self._fused(attended, hidden_states)
        block = children[wiring.mlp]
        if self._parts is None or block._forward_hooks or block._forward_pre_hooks or "forward" in block.__dict__:
            return self._add(block(normed), total)
        router, experts = self._parts
        parts, flat = block._modules, normed.view(-1, normed.shape[-1])
        _, scores, index = parts[router](flat)
        return self._add(parts[experts](flat, index, scores), total)


_WIRINGS = Findings(_wiring)


def _fits(module: Any) -> bool:
    return hasattr(module, _SECOND) and hasattr(module, _ATTENTION) and _WIRINGS.look(module)


def _bind(name: str, layer: Any, scope: Scope) -> tuple[Binding, Binding]:
    wiring, norm = _WIRINGS.of(layer), layer._modules[_SECOND]
    version = default_version("layer")
    both = add_rms_norm.bind(
        norm.weight, norm.variance_epsilon, wiring.multiplier,
        scope=scope, name=f"{name}:add_rms_norm", default_version=version,
    )  # fmt: skip
    last = residual_add.bind(wiring.multiplier, scope=scope, name=f"{name}:residual_add", default_version=version)
    return both, last


def _forward(layer: Any, both: Binding, last: Binding) -> AttachedForward:
    """[batch, tokens, H] to [batch, tokens, H]."""
    return _LayerForward(layer, _WIRINGS.of(layer), both, last)


DECODER_LAYER = Kind(
    op="add_rms_norm",
    fits=_fits,
    bind=_bind,
    forward=_forward,
    claims=lambda layer: (layer._modules[_SECOND],),
)
