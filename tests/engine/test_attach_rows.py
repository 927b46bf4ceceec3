"""Norms, routers and decoder layers of a model, attached: what is recognised, what is left alone, and what comes out."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import tunebook as tb
from tunebook.dispatch import Binding, collecting
from tunebook.errors import ModelError
from tunebook.kernels._native import unavailable
from tunebook.records import DEFAULT, Tactic

pytestmark = pytest.mark.usefixtures("clean_ops")
OPS = ("rms_norm", "router", "add_rms_norm")
ARCHITECTURES = ("mixtral", "qwen3_moe", "olmoe", "granitemoe")
needs_native = pytest.mark.skipif(unavailable() is not None, reason="the native kernels are not here")


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def made(tiny_model: Callable[..., Any], architecture: str, dtype: str = "float32") -> Any:
    """A tiny model with weights that tell norms and experts apart."""
    model = tiny_model(architecture, dtype).model
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.copy_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
        else:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


IDS = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(2))


class Noting:
    """Collects the problems of a pass, serving the default."""

    def __init__(self) -> None:
        self.keys: Counter[str] = Counter()

    def note(self, binding: Binding, args: tuple[Any, ...]) -> Callable[..., Any]:
        problem = binding.spec.shape.problem(binding.spec.shape.describe((*args, *binding.constants)))
        assert problem is not None
        self.keys[problem.key] += 1
        return binding.default


def problems(model: Any) -> Counter[str]:
    noting = Noting()
    with collecting(noting):
        model(IDS)
    return noting.keys


def serve(attachment: Any, keys: Any, *, native: bool = True) -> None:
    tactic = {True: Tactic(runner="native", params=(("parallel", False),)), False: DEFAULT}[native]
    router = Tactic(runner="native", params=(("dot", True), ("parallel", False))) if native else DEFAULT
    attachment.scope.install({key: router if key.startswith("router") else tactic for key in keys})


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_on_the_native_row_kernels_gives_its_own_logits(architecture, dtype, tiny_model):
    model = made(tiny_model, architecture, dtype)
    expected = model(IDS).logits.float()
    with tb.attach(model, OPS) as attachment:
        kinds = Counter(binding.spec.name for binding in attachment.bindings.values())
        heads = {"qwen3_moe": 4, "olmoe": 4}.get(architecture, 0)  # norms of queries and keys
        assert kinds == {"rms_norm": 3 + heads, "router": 2, "add_rms_norm": 2, "residual_add": 2}
        assert torch.equal(model(IDS).logits.float(), expected), "untuned, nothing changes"
        keys = problems(model)
        assert {key.split("|")[0] for key in keys} == set(kinds)
        assert sum(keys.values()) == sum(kinds.values()), "each is met once"
        serve(attachment, keys)
        model(IDS)
        attachment.scope.counts.clear()
        served = model(IDS).logits.float()
        assert {what for what in attachment.scope.counts if what != "bucket"} == set()
        serve(attachment, keys, native=False)
        assert torch.equal(model(IDS).logits.float(), expected), "the ops' own functions compute the same"
    error = (served - expected).norm() / expected.norm()
    assert error < (2e-2 if dtype == "bfloat16" else 1e-5)
    assert torch.equal(model(IDS).logits.float(), expected)
    assert not any("forward" in module.__dict__ for module in model.modules())


@needs_native
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generation_with_a_cache_goes_on_as_before(architecture, tiny_model):
    model = made(tiny_model, architecture)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(IDS, **options)
    with tb.attach(model, OPS) as attachment:
        noting = Noting()
        with collecting(noting):
            model.generate(IDS, **options)
        serve(attachment, noting.keys)
        assert torch.equal(model.generate(IDS, **options), expected)


@needs_native
def test_router_logits_and_hidden_states_are_recorded_as_before(tiny_model):
    model = made(tiny_model, "mixtral")
    expected = model(IDS, output_router_logits=True, output_hidden_states=True)
    with tb.attach(model, OPS) as attachment:
        serve(attachment, problems(model))
        got = model(IDS, output_router_logits=True, output_hidden_states=True)
    torch.testing.assert_close(got.router_logits, expected.router_logits)
    torch.testing.assert_close(got.hidden_states, expected.hidden_states, rtol=1e-4, atol=1e-5)


def attached_layer(model: Any, ops: tuple[str, ...] = OPS) -> tuple[Any, Any]:
    attachment = tb.attach(model, ops)
    serve(attachment, problems(model))
    return attachment, model.model.layers[0]


@needs_native
@pytest.mark.parametrize("where", ["post_attention_layernorm", "mlp", "mlp.gate", "mlp.experts", "self_attn"])
def test_a_hook_on_any_part_of_a_layer_is_called(where, tiny_model):
    model = made(tiny_model, "mixtral")
    attachment, layer = attached_layer(model)
    expected, called = model(IDS).logits, []
    handle = layer.get_submodule(where).register_forward_hook(lambda module, args, output: called.append(module))
    got = model(IDS).logits
    handle.remove()
    attachment.detach()
    assert called == [layer.get_submodule(where)]
    torch.testing.assert_close(got, expected)


@needs_native
def test_a_forward_that_is_put_on_the_block_of_experts_is_called(tiny_model):
    model = made(tiny_model, "mixtral")
    attachment, layer = attached_layer(model)
    layer.mlp.forward = torch.zeros_like
    got = model(IDS).logits
    attachment.detach()
    torch.testing.assert_close(got, model(IDS).logits)


@needs_native
def test_weights_of_a_norm_that_change_are_followed(tiny_model):
    model = made(tiny_model, "granitemoe")
    attachment, layer = attached_layer(model)
    model(IDS)
    layer.post_attention_layernorm.weight.mul_(2)
    layer.input_layernorm.weight = nn.Parameter(layer.input_layernorm.weight * 3)
    layer.block_sparse_moe.router.weight.neg_()
    changed = model(IDS).logits
    attachment.detach()
    torch.testing.assert_close(changed, model(IDS).logits, rtol=1e-4, atol=1e-5)


@needs_native
def test_a_norm_that_is_replaced_or_parametrised_is_used(tiny_model):
    model = made(tiny_model, "mixtral")
    attachment, layer = attached_layer(model)
    model(IDS)
    layer.post_attention_layernorm = nn.Identity()
    replaced = model(IDS).logits
    nn.utils.parametrize.register_parametrization(layer.input_layernorm, "weight", nn.Tanh())
    second = model.model.layers[1].post_attention_layernorm
    nn.utils.parametrize.register_parametrization(second, "weight", nn.Tanh())
    parametrised = model(IDS).logits
    attachment.detach()
    torch.testing.assert_close(parametrised, model(IDS).logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(parametrised, replaced)


@needs_native
def test_a_copy_of_an_attached_model_is_a_model_of_its_own(tiny_model):
    model = made(tiny_model, "olmoe")
    attachment, layer = attached_layer(model)
    copied = copy.deepcopy(model)
    layer.post_attention_layernorm.weight.zero_()
    got = copied(IDS).logits
    attachment.detach()
    assert not torch.allclose(got, model(IDS).logits)
    torch.testing.assert_close(got, made(tiny_model, "olmoe")(IDS).logits)


@needs_native
def test_in_training_and_for_positional_arguments_the_layers_own_forward_runs(tiny_model):
    model = made(tiny_model, "mixtral")
    attachment, layer = attached_layer(model, ("add_rms_norm",))
    x = torch.randn(1, 4, 64)
    places = model.model.rotary_emb(x, torch.arange(4)[None])
    with collecting(noting := Noting()):
        served = layer(x, position_embeddings=places)
        assert len(noting.keys) == 2
        noting.keys.clear()
        by_position = layer(x, places)
        layer.train()
        training = layer(x, position_embeddings=places)
        layer.eval()
        assert not noting.keys
    attachment.detach()
    torch.testing.assert_close(by_position, served)
    torch.testing.assert_close(training, served)


def test_while_the_defaults_serve_a_layer_is_transformers_own(tiny_model):
    model = made(tiny_model, "granitemoe")
    attachment = tb.attach(model, ("add_rms_norm",))
    model(IDS)
    assert not attachment.scope.counts, "no op was called"
    attachment.detach()


# ---------------------------------------------------------------- what is left alone


class RMSNorm(nn.Module):
    """As Transformers has it."""

    def __init__(self, size: int = 8, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.variance_epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)).to(
            x.dtype
        )


class ShiftedRMSNorm(RMSNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x.new_tensor(0) + self._normed(x)

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        return x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


class GatedRMSNorm(RMSNorm):
    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x) * gate


class BiasedRMSNorm(RMSNorm):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(8))


class RoundedLateRMSNorm(RMSNorm):
    """Rounds once, at the end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return (self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))).to(
            x.dtype
        )


def norms_attached(module: nn.Module) -> int:
    holder = nn.ModuleDict({"linear": nn.Linear(8, 8), "norm": module}).requires_grad_(False)
    with tb.attach(holder, ("rms_norm", "linear")) as attachment:
        return sum(binding.spec.name == "rms_norm" for binding in attachment.bindings.values())


def test_a_norm_is_known_by_what_it_computes():
    assert norms_attached(RMSNorm()) == 1
    assert norms_attached(RMSNorm().bfloat16()) == 1
    for other in (ShiftedRMSNorm(), GatedRMSNorm(), BiasedRMSNorm(), RoundedLateRMSNorm().bfloat16()):
        assert norms_attached(other) == 0, type(other).__name__
    patched = RMSNorm()
    patched.forward = lambda x: x  # type: ignore[method-assign]
    assert norms_attached(patched) == 0
    assert norms_attached(RMSNorm().to("meta")) == 0


def test_gemmas_norms_which_multiply_by_one_plus_the_weight_are_left_alone():
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

    norm = GemmaRMSNorm(8)
    norm.weight.normal_()
    assert norms_attached(norm) == 0


@pytest.mark.parametrize(
    ("change", "attached"),
    [
        ("sums twice", False),
        ("norms before the sum", False),
        ("hides an argument", False),
        ("nothing", True),
    ],
)
def test_a_layer_is_known_by_how_it_connects_its_parts(change, attached):
    class DecoderLayer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input_layernorm, self.post_attention_layernorm = RMSNorm(), RMSNorm()
            self.self_attn, self.mlp = nn.Identity(), nn.Linear(8, 8)

        def forward(self, hidden_states: torch.Tensor, mask: object = None, **kwargs: object) -> torch.Tensor:
            if change == "hides an argument":
                mask = None
            found, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), mask=mask, **kwargs)
            total = hidden_states + found
            if change == "sums twice":
                total = total + found
            normed = self.post_attention_layernorm(found if change == "norms before the sum" else total)
            return total + self.mlp(normed)

    holder = nn.ModuleList([DecoderLayer()]).requires_grad_(False)
    with tb.attach(holder, OPS) as attachment:
        names = {binding.name for binding in attachment.bindings.values()}
    expected = {"0:add_rms_norm", "0:residual_add", "0.input_layernorm"} if attached else {
        "0.input_layernorm", "0.post_attention_layernorm"
    }  # fmt: skip
    assert names == expected


@pytest.mark.parametrize("jitter", [False, True])
def test_a_router_is_known_by_what_it_computes(jitter):
    class TopKRouter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.top_k = nn.Parameter(torch.randn(6, 8)), 2

        def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
            logits = nn.functional.linear(hidden_states, self.weight) * (1.01 if jitter else 1)
            scores, index = logits.softmax(-1).topk(self.top_k)
            return logits, scores, index

    holder = nn.ModuleList([TopKRouter(), nn.Linear(8, 8)]).requires_grad_(False)
    with tb.attach(holder, ("router", "linear")) as attachment:
        kinds = {binding.spec.name for binding in attachment.bindings.values()}
    assert kinds == ({"linear"} if jitter else {"linear", "router"})


def test_dense_models_have_norms_and_layers_too():
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    ids = torch.randint(0, 64, (1, 5))
    expected = model(ids).logits
    with tb.attach(model, OPS) as attachment:
        kinds = Counter(binding.spec.name for binding in attachment.bindings.values())
        noting = Noting()
        with collecting(noting):
            assert torch.equal(model(ids).logits, expected)
    assert kinds == {"rms_norm": 3, "add_rms_norm": 2, "residual_add": 2}


def test_a_model_with_other_layers_keeps_them(tiny_model):
    model = tiny_model("gpt_oss").model
    expected = model(IDS).logits
    with pytest.raises(ModelError, match="no module for router"):
        tb.attach(model, ("router",))
    with tb.attach(model, ("linear", "add_rms_norm")) as attachment:
        assert {binding.spec.name for binding in attachment.bindings.values()} == {"linear"}
        assert torch.equal(model(IDS).logits, expected)
