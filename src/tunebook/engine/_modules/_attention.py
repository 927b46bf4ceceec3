"""Attaching attention modules of Transformers: their projections as one op, `qkv`, and one token against the cache, `attend`."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import types
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from tunebook.dispatch import Binding, Scope, collector, is_released, place
from tunebook.engine._library import LibraryCall, declare_append
from tunebook.engine._modules._forward import Always, AttachedForward, TracedForward
from tunebook.engine._modules._kind import Kind
from tunebook.kernels import attend, qkv

logger = logging.getLogger("tunebook.engine")

#: The modules whose forward is known: by the last part of their module's name, and their own.
_KNOWN = {
    ("modeling_mixtral", "MixtralAttention"),
    ("modeling_qwen3_moe", "Qwen3MoeAttention"),
    ("modeling_olmoe", "OlmoeAttention"),
    ("modeling_granitemoe", "GraniteMoeAttention"),
}
_NORMS = {"Qwen3MoeAttention": "Qwen3MoeRMSNorm", "OlmoeAttention": "OlmoeRMSNorm"}
_PARAMETERS = ("self", "hidden_states", "position_embeddings", "attention_mask", "past_key_values", "kwargs")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def _fits(module: Any) -> bool:
    """A known module, as its class makes it; another's linears are attached one by one."""
    kind = type(module)
    if (kind.__module__.rpartition(".")[2], kind.__name__) not in _KNOWN or not kind.__module__.startswith(
        "transformers."
    ):
        return False
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return (
        tuple(inspect.signature(kind.forward).parameters) == _PARAMETERS
        and "forward" not in module.__dict__
        and module.config._attn_implementation == "sdpa"
        and ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward
        and all(_plain_linear(module._modules.get(name)) for name in (*_PROJECTIONS, "o_proj"))
        and _sizes_fit(module)
        and _norms_fit(module)
        and (_clip(module) is None or _clip(module) > 0)
    )


def _plain_linear(layer: Any) -> bool:
    from torch import nn

    if type(layer) is not nn.Linear or "forward" in layer.__dict__ or layer._forward_hooks or layer._forward_pre_hooks:
        return False
    weight = layer.weight
    return bool(weight.is_floating_point() and not weight.is_meta and weight.ndim == 2)


def _sizes_fit(module: Any) -> bool:
    q, k, v = (module._modules[name].weight for name in _PROJECTIONS)
    dim = module.head_dim
    same = q.dtype == k.dtype == v.dtype and q.device == k.device == v.device and q.shape[1] == k.shape[1]
    heads = dim % 2 == 0 and len(q) % dim == 0 and len(k) % dim == 0 and k.shape == v.shape
    return bool(same and heads and len(q) == len(k) * module.num_key_value_groups)


def _norms_fit(module: Any) -> bool:
    wanted = _NORMS.get(type(module).__name__)
    norms = [module._modules.get(name) for name in ("q_norm", "k_norm")]
    if wanted is None:
        return norms == [None, None]
    if any(type(norm).__name__ != wanted or "forward" in norm.__dict__ for norm in norms if norm is not None):
        return False
    q, k = norms
    if q is None or k is None or q.variance_epsilon != k.variance_epsilon:
        return False
    sizes = (len(q.weight), len(k.weight))
    if wanted == "Qwen3MoeRMSNorm":
        return sizes == (module.head_dim, module.head_dim)
    return sizes == (len(module.q_proj.weight), len(module.k_proj.weight))


def _clip(module: Any) -> Any:
    return getattr(module.config, "clip_qkv", None) if type(module).__name__ == "OlmoeAttention" else None


def _parts(module: Any) -> list[tuple[str, Any]]:
    """The submodules that `qkv` replaces."""
    names = (*_PROJECTIONS, "q_norm", "k_norm")
    return [(name, module._modules[name]) for name in names if module._modules.get(name) is not None]


def _claims(module: Any) -> Sequence[Any]:
    return [part for _, part in _parts(module)]


def _constants(module: Any) -> tuple[Any, ...]:
    linears = [module._modules[name] for name in _PROJECTIONS]
    norms = [module._modules.get(name) for name in ("q_norm", "k_norm")]
    return (
        *(linear.weight for linear in linears),
        *(linear.bias for linear in linears),
        *(None if norm is None else norm.weight for norm in norms),
        module.head_dim,
        0.0 if norms[0] is None else float(norms[0].variance_epsilon),
        _clip(module),
    )


def _bind(name: str, module: Any, scope: Scope) -> tuple[Binding, Binding]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    default_version = f"transformers {type(module).__name__} {version('transformers')}"
    scaling = float(module.scaling)

    def own_heads(x: Any, cos: Any, sin: Any) -> tuple[Any, Any, Any]:
        return _own_heads(module, x, cos, sin)

    def own_attend(q: Any, k: Any, v: Any, mask: Any, keys: int) -> Any:
        if keys != k.shape[2]:
            k, v = k.narrow(2, 0, keys), v.narrow(2, 0, keys)
        return sdpa_attention_forward(module, q, k, v, mask, dropout=0.0, scaling=scaling)[0]

    options: dict[str, Any] = {"scope": scope, "default_version": default_version}
    return (
        qkv.bind(*_constants(module), name=f"{name}:qkv", default=own_heads, **options),
        attend.bind(scaling, name=f"{name}:attend", default=own_attend, **options),
    )


def _own_heads(module: Any, x: Any, cos: Any, sin: Any) -> tuple[Any, Any, Any]:
    """Queries, keys and values as the module itself computes them."""
    shape = (*x.shape[:-1], -1, module.head_dim)
    q, k, v = module.q_proj(x), module.k_proj(x), module.v_proj(x)
    if (norms := _NORMS.get(type(module).__name__)) == "OlmoeRMSNorm":
        q, k = module.q_norm(q), module.k_norm(k)
    clip = _clip(module)
    if clip is not None:
        q, k, v = (value.clamp(min=-clip, max=clip) for value in (q, k, v))
    q, k, v = q.view(shape), k.view(shape), v.view(shape)
    if norms == "Qwen3MoeRMSNorm":
        q, k = module.q_norm(q), module.k_norm(k)
    q, k = sys.modules[type(module).__module__].apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    return q, k, v.transpose(1, 2)


class AttentionForward(AttachedForward):
    """Stands in an attention module's ``forward``: Transformers' arguments and results.

    The module's own forward runs while nothing is tuned or collected.
    """

    def __init__(self, module: Any, projecting: Binding, attending: Binding) -> None:
        super().__init__(module, projecting, ())
        self._attending = attending
        self._attention_own = functools.partial(type(module).forward, module)
        self._watch = _Watch(module, projecting)
        self._heads, self._attended = projecting.caller(), attending.caller()

    def traced(self) -> TracedForward:
        """The same forward of library ops: the cache is Transformers' and ours, as traced, with `append` for its writing."""

        def heads(x: Any, cos: Any, sin: Any) -> Any:
            serve = self._heads if self._watch.unchanged() else self._binding.default
            return serve(x, cos, sin)

        declare_append()
        calls = LibraryCall(self._binding, heads), LibraryCall(self._attending, self._attended)
        call = _call_of(self._module, self._attention_own, Always(), _Unwatched(), *calls)
        return TracedForward(self._module, call, self._attention_own, calls)


class _Watch:
    """Whether a module's parts and weights are still those that are bound. What changed is bound anew where that can be."""

    def __init__(self, module: Any, binding: Binding) -> None:
        self._module, self._binding = module, binding
        self._children = module._modules
        self._parts = _parts(module)
        self.renew()
        binding.followers.append(self.renew)

    def renew(self) -> None:
        seen = []
        for _, part in self._parts:
            for name, value in part._parameters.items():
                where = (None, None) if value is None or is_released(value) else place(value)
                seen.append((part._parameters, name, value, *where))
        self._seen = seen

    def unchanged(self) -> bool:
        children = self._children
        for name, part in self._parts:
            if children.get(name) is not part or part._forward_hooks or part._forward_pre_hooks:
                return False
        for own, name, value, where, count in self._seen:
            if own.get(name) is not value or (where and value.data_ptr() != where):
                return self._follow()
            if count is not None and value._version != count:
                return self._follow()
        return True

    def _follow(self) -> bool:
        """Bind the present weights. False where the module is not of a known form any more: its own forward must run."""
        plain = all(_plain_linear(part) for name, part in self._parts if name in _PROJECTIONS)
        if not (plain and _sizes_fit(self._module) and _norms_fit(self._module)):
            return False
        self._binding.rebind(_constants(self._module))
        self.renew()
        logger.info("the weights of %s have changed: what was prepared from them is made again", self._binding.name)
        return True


class _Unwatched:
    """In place of a `_Watch`: the library op looks for itself."""

    def unchanged(self) -> bool:
        return True


def _call_of(
    module: Any,
    own: Callable[..., Any],
    scope: Scope | Always,
    watch: _Watch | _Unwatched,
    heads: Callable[..., Any],
    attended: Callable[..., Any],
) -> Callable[..., tuple[Any, Any]]:
    """The forward with `heads` and `attended` in place of what they stand for."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from tunebook.engine._cache import layer_with_room

    index = module.layer_idx
    config, scaling, children = module.config, float(module.scaling), module._modules
    # What the attention function looks for beside what is given here: with one of these it does something else.
    special = (set(inspect.signature(sdpa_attention_forward).parameters) | {"softcap"}) - {"kwargs"}

    def call(
        hidden_states: Any,
        position_embeddings: Any = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        if (
            not ((scope.tuned and scope.tactics) or scope.recording or collector() is not None)
            or position_embeddings is None
            or hidden_states.ndim != 3
            or module.training
            or config._attn_implementation != "sdpa"
            or not special.isdisjoint(kwargs)
            or not watch.unchanged()
        ):
            return own(hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)  # type: ignore[no-any-return]
        q, k, v = heads(hidden_states, *position_embeddings)
        batch, tokens, _ = hidden_states.shape
        if tokens == 1 and (attention_mask is None or attention_mask.shape[1] == 1):
            keys = 1
            if past_key_values is not None:
                layer = layer_with_room(past_key_values, index)
                room = None if layer is None else layer.extend(k, v)
                if room is None:
                    k, v = past_key_values.update(k, v, index)
                    keys = k.shape[2]
                else:
                    k, v, keys = room
            out = attended(q, k, v, attention_mask, keys)
        else:
            if past_key_values is not None:
                k, v = past_key_values.update(k, v, index)
            out, _ = sdpa_attention_forward(module, q, k, v, attention_mask, dropout=0.0, scaling=scaling, **kwargs)
        return children["o_proj"](out.reshape(batch, tokens, -1)), None

    return call


def _forward(module: Any, projecting: Binding, attending: Binding) -> AttentionForward:
    """[B, T, H] to [B, T, H]."""
    forward = AttentionForward(module, projecting, attending)
    own, heads, attended = forward._attention_own, forward._heads, forward._attended
    call = _call_of(module, own, projecting.scope, forward._watch, heads, attended)
    forward.__class__ = types.new_class(
        AttentionForward.__name__,
        (AttentionForward,),
        exec_body=lambda body: body.update(__call__=staticmethod(call)),
    )
    return forward


ATTENTION = Kind(op="qkv", fits=_fits, bind=_bind, forward=_forward, claims=_claims)
