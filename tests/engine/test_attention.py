"""Attached attention modules against Transformers' own, and the cache layer with room against Transformers' cache."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.cache_utils import DynamicCache

import tunebook as tb
import tunebook.kernels._native as native
from tunebook.dispatch import Binding
from tunebook.engine._cache import LEAST_ROOM, RoomyLayer, layer_with_room
from tunebook.engine.models import random_model, tiny_config
from tunebook.kernels import attend, qkv
from tunebook.records import DEFAULT, Problem, Tactic

pytestmark = pytest.mark.usefixtures("clean_ops")

Noted = Callable[[], AbstractContextManager[dict[str, tuple[Binding, Problem]]]]

ARCHITECTURES = ("mixtral", "qwen3_moe", "olmoe", "granitemoe")
needs_kernels = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
IDS = torch.randint(0, 256, (3, 12), generator=torch.Generator().manual_seed(0))
LEFT_PADDED = torch.ones_like(IDS)
LEFT_PADDED[0, :4] = 0
LEFT_PADDED[2, :1] = 0


def model_of(architecture: str, dtype: str = "float32", **config: Any) -> Any:
    made = tiny_config(architecture)
    for name, value in config.items():
        setattr(made, name, value)
    model = random_model(made, dtype)
    make = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # of ones a forgotten weight would not show
            parameter.copy_(torch.rand(parameter.shape, generator=make) + 0.5)
    return model


def steps(model: Any, mask: torch.Tensor | None, cache: Any = None) -> list[torch.Tensor]:
    """Logits of a prefill of 8 tokens, and of each of the next four by itself."""
    cache = DynamicCache(config=model.config) if cache is None else cache
    found = []
    for start, end in ((0, 8), (8, 9), (9, 10), (10, 11), (11, 12)):
        seen = None if mask is None else mask[:, :end]
        out = model(input_ids=IDS[:, start:end], attention_mask=seen, past_key_values=cache, use_cache=True)
        found.append(out.logits)
    return found


def natives(problems: dict[str, tuple[Binding, Problem]], seed: int = 0) -> dict[str, Tactic]:
    """For each problem of `qkv` and `attend` a tactic of the native runner."""
    chosen = {}
    for key, (binding, problem) in problems.items():
        if problem.op in ("qkv", "attend"):
            runner = binding.spec.runners["native"]
            fitting = [tactic for tactic in runner.space_of(problem) if runner.refusal(tactic, problem) is None]
            chosen[key] = fitting[seed % len(fitting)]
    return chosen


@torch.inference_mode()
@pytest.mark.parametrize("mask", [None, LEFT_PADDED])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_attached_model_computes_what_it_did_until_something_is_tuned(
    architecture: str, mask: Any, noted: Noted
) -> None:
    model = model_of(architecture, "bfloat16")
    expected = steps(model, mask)
    with tb.attach(model, ("qkv", "linear")) as attachment:
        names = set(attachment.bindings)
        assert {f"model.layers.{i}.self_attn{part}" for i in (0, 1) for part in (":qkv", ":attend", ".o_proj")} <= names
        assert not any(name.endswith(("q_proj", "k_proj", "v_proj")) for name in names)
        assert all(torch.equal(one, other) for one, other in zip(steps(model, mask), expected, strict=True))
        with noted() as problems:
            assert all(torch.equal(one, other) for one, other in zip(steps(model, mask), expected, strict=True))
        ops = {problem.op: problem for _, problem in problems.values()}
        assert {"qkv", "attend", "linear"} <= set(ops)
        # tactics that are the defaults by name: the calls go their own way to the same bits
        attachment.scope.install(dict.fromkeys(problems, DEFAULT))
        assert all(torch.equal(one, other) for one, other in zip(steps(model, mask), expected, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(steps(model, mask), expected, strict=True))
    assert not any("forward" in module.__dict__ for module in model.modules())


@needs_kernels
@torch.inference_mode()
@pytest.mark.parametrize("mask", [None, LEFT_PADDED])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_native_attention_is_transformers_within_rounding(
    architecture: str, dtype: str, mask: Any, noted: Noted
) -> None:
    config: dict[str, Any] = {"num_experts_per_tok": 8}  # all: a choice that is nearly a tie would hide the rounding
    if architecture == "olmoe" and mask is None:
        config["clip_qkv"] = 0.5
    model = model_of(architecture, dtype, **config)
    exact = steps(model_of(architecture, "float32", **config), mask)
    own = steps(model, mask)
    with tb.attach(model, ("qkv",)) as attachment:
        with noted() as problems:
            steps(model, mask)
        for seed in (0, 7):
            attachment.scope.install(natives(problems, seed), replace=True)
            attachment.scope.counts.clear()
            cache = DynamicCache(config=model.config)
            served = steps(model, mask, cache)
            assert not [what for what in attachment.scope.counts if what.startswith("default")]
            assert all(type(layer) is RoomyLayer for layer in cache.layers)
            assert cache.get_seq_length() == 12
            rows = slice(None) if mask is None else slice(1, 2)  # what a padding token computes is nobody's business
            for got, before, best in zip(served, own, exact, strict=True):
                off, limit = ((value[rows] - best[rows]).float().norm() for value in (got, before))
                assert off <= 2 * limit + 1e-5 * best[rows].norm()


@needs_kernels
@torch.inference_mode()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generation_is_the_same_whoever_attends(architecture: str, noted: Noted) -> None:
    model = model_of(architecture)
    options: dict[str, Any] = {"attention_mask": LEFT_PADDED, "max_new_tokens": 8, "pad_token_id": 0}
    searches: list[dict[str, Any]] = [{"do_sample": False}, {"do_sample": False, "num_beams": 3}]
    expected = [model.generate(IDS, **options, **search) for search in searches]
    with tb.attach(model, ("qkv",)) as attachment:
        with noted() as problems:
            found = [model.generate(IDS, **options, **search) for search in searches]
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        attachment.scope.install(natives(problems))
        found = [model.generate(IDS, **options, **search) for search in searches]
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@needs_kernels
@torch.inference_mode()
def test_released_projections_serve_and_come_back(noted: Noted) -> None:
    model = model_of("qwen3_moe", "bfloat16")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with tb.attach(model, ("qkv",)) as attachment:
        with noted() as problems:
            steps(model, None)
        tactics = natives(problems)
        attachment.scope.install(tactics)
        served = steps(model, None)
        projecting = [binding for binding in attachment.bindings.values() if binding.spec is qkv]
        for binding in projecting:
            assert binding.releasable > 0
            binding.release(next(tactic for key, tactic in tactics.items() if key.startswith("qkv")))
        assert all(torch.equal(one, other) for one, other in zip(steps(model, None), served, strict=True))
        assert all(binding.released for binding in projecting)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def _hooked(module: Any) -> None:
    module.q_proj.register_forward_hook(lambda layer, args, out: out * 0)


def _in_place(module: Any) -> None:
    module.k_proj.weight.mul_(-1)


def _replaced(module: Any) -> None:
    module.v_proj = nn.Sequential(module.v_proj, nn.Dropout(0.0))


def _new_weight(module: Any) -> None:
    module.q_proj.weight = nn.Parameter(module.q_proj.weight.flip(0), requires_grad=False)


def _new_norm(module: Any) -> None:
    module.q_norm.weight.data = module.q_norm.weight * 3


def _parametrised(module: Any) -> None:
    class Doubled(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * 2

    nn.utils.parametrize.register_parametrization(module.v_proj, "weight", Doubled())


def _other_attention(module: Any) -> None:
    module.config._attn_implementation = "eager"


CHANGES = (_hooked, _in_place, _replaced, _new_weight, _new_norm, _parametrised, _other_attention)


@needs_kernels
@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_in_an_attached_module_is_followed(change: Callable[[Any], None], noted: Noted) -> None:
    model, other = model_of("qwen3_moe"), model_of("qwen3_moe")
    with tb.attach(model, ("qkv",)) as attachment:
        with noted() as problems:
            steps(model, None)
        attachment.scope.install(natives(problems))
        former = steps(model, None)
        for changed in (model, other):
            change(changed.model.layers[0].self_attn)
        for _ in range(2):
            for got, expected in zip(steps(model, None), steps(other, None), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        moved = any((one - two).abs().max() > 1e-2 for one, two in zip(former, steps(other, None), strict=True))
        assert moved == (change not in (_replaced, _other_attention))


@needs_kernels
def test_calls_that_want_gradients_get_them(noted: Noted) -> None:
    model = model_of("mixtral")
    with tb.attach(model, ("qkv",)) as attachment:
        with torch.no_grad(), noted() as problems:
            steps(model, None)
        attachment.scope.install(natives(problems))
        weight = model.model.layers[0].self_attn.q_proj.weight
        weight.requires_grad_(True)
        torch.stack([logits[:, -1].sum() for logits in steps(model, None)]).sum().backward()
        assert weight.grad is not None
        assert weight.grad.abs().sum() > 0


@torch.inference_mode()
def test_a_copy_of_an_attached_module_is_not_attached() -> None:
    model = model_of("granitemoe")
    expected = steps(model, None)
    with tb.attach(model, ("qkv",)) as attachment:
        attachment.scope.install({"qkv|N=64,KV=32,K=64,D=16|fp32|M≤4": DEFAULT})
        twin = copy.deepcopy(model)
        model.model.layers[0].self_attn.q_proj.weight.zero_()
        assert all(torch.equal(one, other) for one, other in zip(steps(twin, None), expected, strict=True))


class Odd(nn.Module):
    """A module that is known by neither class nor form."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(4, 4)


def test_modules_of_another_form_have_their_linears_attached_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of("qwen3_moe")
    attention = [layer.self_attn for layer in model.model.layers]
    attention[0].k_norm.variance_epsilon = 0.5
    model.other = Odd()
    with caplog.at_level(logging.WARNING, logger="tunebook"), torch.inference_mode():
        names = set(tb.attach(model, ("qkv", "linear")).bindings)
    assert not caplog.records
    assert "other.q_proj" in names
    assert {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn:qkv"} <= names
    assert not {"model.layers.0.self_attn:qkv", "model.layers.1.self_attn.q_proj"} & names
    eager = model_of("mixtral")
    eager.set_attn_implementation("eager")
    assert "model.layers.0.self_attn.q_proj" in tb.attach(eager).bindings


# ---- the cache ----------------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("update"), st.sampled_from([1, 1, 1, 2, 70])),
        st.tuples(st.just("crop"), st.sampled_from([-1, -2, 0])),
        st.tuples(st.just("reorder"), st.permutations([0, 1, 2])),
        st.tuples(st.just("select"), st.sampled_from([[0, 2], [1, 0, 1]])),
        st.tuples(st.just("repeat"), st.integers(1, 2)),
        st.tuples(st.just("reset"), st.none()),
        st.tuples(st.just("copy"), st.none()),
        st.tuples(st.just("pickle"), st.none()),
        st.tuples(st.just("replace"), st.none()),
    ),
    max_size=12,
)


@settings(max_examples=60)
@given(STEPS, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.booleans())
def test_a_cache_with_room_holds_what_transformers_cache_holds(
    actions: list[tuple[str, Any]], dtype: torch.dtype, adopted: bool
) -> None:
    make = torch.Generator().manual_seed(len(actions))
    caches = [DynamicCache(), DynamicCache()]
    first = torch.randn(3, 2, 5, 4, generator=make).to(dtype)
    for cache in caches:
        cache.update(first, first + 1, 0)
    if adopted:
        assert layer_with_room(caches[0], 0) is caches[0].layers[0]
    for action, value in actions:
        batch = len(caches[1].layers[0].keys) if caches[1].get_seq_length() else 3
        if action == "update":
            new = torch.randn(batch, 2, value, 4, generator=make).to(dtype)
            results = [cache.update(new, new * 2, 0) for cache in caches]
            assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
        elif action == "crop" and caches[1].get_seq_length() >= -value:
            for cache in caches:
                cache.crop(value)
        elif action == "reorder" and batch == 3:
            for cache in caches:
                cache.reorder_cache(torch.tensor(value))
        elif action == "select" and batch == 3 and caches[1].get_seq_length():
            for cache in caches:
                cache.batch_select_indices(torch.tensor(value))
        elif action == "repeat":
            for cache in caches:
                cache.batch_repeat_interleave(value)
        elif action == "reset":
            for cache in caches:
                cache.reset()
        elif action == "copy":
            left, caches = caches, [copy.deepcopy(cache) for cache in caches]
            wild = torch.full((batch, 2, 1, 4), torch.nan, dtype=dtype)
            for cache in left:  # what happens to the original is not the copy's business
                cache.update(wild, wild, 0)
        elif action == "pickle":
            caches = [pickle.loads(pickle.dumps(cache)) for cache in caches]  # noqa: S301 - our own bytes
        elif action == "replace":
            layer_with_room(caches[0], 0)
        assert caches[0].get_seq_length() == caches[1].get_seq_length()
        assert caches[0].get_mask_sizes(1, 0) == caches[1].get_mask_sizes(1, 0)
        one, other = (cache.layers[0] for cache in caches)
        if other.keys is None:
            assert one.keys is None
            assert one.values is None
        else:
            assert torch.equal(one.keys, other.keys)
            assert torch.equal(one.values, other.values)


def test_a_token_is_written_where_there_is_room() -> None:
    cache = DynamicCache()
    old = torch.randn(1, 2, 6, 8)
    cache.update(old, old, 0)
    layer = layer_with_room(cache, 0)
    assert layer is not None
    new = torch.randn(1, 2, 1, 8)
    places = set()
    for count in range(LEAST_ROOM):
        extended = layer.extend(new, new)
        assert extended is not None
        assert extended[2] == 7 + count
        places.add(extended[0].data_ptr())
    assert len(places) == 1
    cache.crop(-LEAST_ROOM)
    layer.extend(new, new)
    assert layer.keys.data_ptr() in places
    assert torch.equal(layer.keys, torch.cat((old, new), dim=2))


def test_states_of_another_kind_are_concatenated_as_ever() -> None:
    cache = DynamicCache()
    old = torch.randn(1, 2, 6, 8)
    cache.update(old, old, 0)
    layer = layer_with_room(cache, 0)
    assert layer is not None
    new = torch.randn(1, 2, 1, 8, requires_grad=True)
    assert layer.extend(new, new) is None
    layer.update(new, new)
    assert layer.keys.requires_grad
    assert layer.extend(new.detach(), new.detach()) is None
    layer.reset()
    layer.update(old.bfloat16(), old.bfloat16())
    assert layer.extend(old, old) is None
    layer.update(old, old)
    assert layer.keys.dtype == torch.float32, "as torch.cat has it"
    with pytest.raises(RuntimeError, match="Sizes of tensors"):
        layer.update(old[..., :4], old[..., :4])


def test_only_plain_layers_that_hold_something_get_room() -> None:
    from transformers import MistralConfig
    from transformers.cache_utils import StaticCache

    assert layer_with_room(DynamicCache(), 0) is None
    config = MistralConfig(num_hidden_layers=1, sliding_window=4)
    sliding = DynamicCache(config=config)
    sliding.update(torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4), 0)
    assert layer_with_room(sliding, 0) is None
    assert layer_with_room(DynamicCache(config=tiny_config("mixtral")), 0) is None
    assert layer_with_room(StaticCache(config=tiny_config("mixtral"), max_cache_len=4), 0) is None


@needs_kernels
@torch.inference_mode()
@pytest.mark.parametrize("kind", ["static", "sliding"])
def test_other_caches_are_left_as_they_are(kind: str, noted: Noted) -> None:
    from transformers.cache_utils import StaticCache

    model = model_of("mixtral", sliding_window=6 if kind == "sliding" else None)

    def cache() -> Any:
        return (
            StaticCache(config=model.config, max_cache_len=16)
            if kind == "static"
            else DynamicCache(config=model.config)
        )

    expected = steps(model, LEFT_PADDED, cache())
    with tb.attach(model, ("qkv",)) as attachment:
        with noted() as problems:
            steps(model, LEFT_PADDED, cache())
        attachment.scope.install(natives(problems))
        used = cache()
        kinds = [type(layer) for layer in used.layers]
        for got, want in zip(steps(model, LEFT_PADDED, used), expected, strict=True):
            torch.testing.assert_close(got[1], want[1], rtol=1e-4, atol=1e-4)
        assert [type(layer) for layer in used.layers] == kinds
    assert attend.name == "attend"
