"""Calls of attached modules: by position and by name, and the warnings about gradients that would keep tactics out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tunebook as tb
from tunebook.errors import UsageError
from tunebook.records import Tactic

pytestmark = pytest.mark.usefixtures("clean_ops")


@pytest.fixture
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model("mixtral").model


def module_of(model: Any, kind: str) -> Any:
    return next(m for name, m in model.named_modules() if (name.endswith(kind)))


@pytest.mark.parametrize("tuned", [False, True])
def test_an_attached_linear_takes_its_argument_by_name(tuned: bool, model: Any) -> None:
    linear, x = module_of(model, "q_proj"), torch.randn(3, 64)
    assert isinstance(linear, nn.Linear)
    expected = linear(x)
    with torch.inference_mode(), tb.attach(model):
        if tuned:
            with tb.autotune(budget_s=5, only_runners=("torch_transposed",)):
                linear(input=x)
        torch.testing.assert_close(linear(input=x), expected)
        torch.testing.assert_close(linear(x), expected)
        with pytest.raises(TypeError, match="no_such"):
            linear(no_such=x)


def test_attached_experts_take_their_arguments_by_name(model: Any) -> None:
    experts, x = module_of(model, "mlp.experts"), torch.randn(5, 64)
    index = torch.stack([torch.randperm(8)[:2] for _ in range(5)])
    weights = torch.rand(5, 2)
    with torch.inference_mode():
        expected = experts(x, index, weights)
        with tb.attach(model):
            named = experts(hidden_states=x, top_k_weights=weights, top_k_index=index)
            mixed = experts(x, index, top_k_weights=weights)
    torch.testing.assert_close(named, expected)
    torch.testing.assert_close(mixed, expected)


def said(model: Any, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="tunebook"):
        tb.attach(model).detach()
    return caplog.text


def test_gradients_that_keep_tactics_out_are_warned_about(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    model.requires_grad_(False).eval()
    assert said(model, caplog) == ""
    model.train()
    assert "training mode" in said(model, caplog)
    model.eval()
    next(model.parameters()).requires_grad_(True)
    assert "torch.inference_mode()" in said(model, caplog)
    with torch.inference_mode():
        assert said(model, caplog) == "", "gradients are off already"


def _linear_net(bias: bool = True) -> Any:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4, bias=bias)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.layer(x)
            return result

    return Net().eval().requires_grad_(False)


def _new_weight(layer: Any) -> None:
    layer.weight = nn.Parameter(torch.randn(4, 8), requires_grad=False)


def _new_bias(layer: Any) -> None:
    layer.bias = nn.Parameter(torch.randn(4), requires_grad=False)


def _other_storage(layer: Any) -> None:
    layer.weight.data = torch.randn(4, 8)


def _parametrised(layer: Any) -> None:
    class Doubled(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * 2

    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())


CHANGES: list[Callable[[Any], object]] = [
    _new_weight,
    _new_bias,
    _other_storage,
    lambda layer: layer.weight.mul_(2),
    lambda layer: layer.bias.add_(1),
    _parametrised,
]


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_change_under_an_attached_module_are_followed(change: Callable[[Any], object]) -> None:
    net, x = _linear_net(), torch.randn(4, 8)
    with torch.no_grad(), tb.attach(net) as attachment:
        # the tactic holds a copy of the weights in another layout, which is what could go stale
        attachment.scope.install({"linear|N=4,K=8,bias=yes|fp32|M≤4": Tactic.parse("torch_transposed")})
        net(x)
        assert attachment.prepared_bytes > 0
        change(net.layer)
        for _ in range(2):
            torch.testing.assert_close(net(x), x @ net.layer.weight.T + net.layer.bias)


def test_a_bias_that_is_taken_away_is_followed() -> None:
    net, x = _linear_net(), torch.randn(4, 8)
    with torch.no_grad(), tb.attach(net):
        net(x)
        net.layer.bias = None
        torch.testing.assert_close(net(x), x @ net.layer.weight.T)


@pytest.mark.parametrize(("measurement", "named"), [("captured", "CPU has no graphs"), ("lazy", "eager, captured")])
def test_a_measuring_policy_that_the_device_cannot_follow_is_refused_by_name(measurement: str, named: str) -> None:
    net = _linear_net()
    with pytest.raises(UsageError, match=named):
        tb.attach(net, measurement=measurement)
    assert "forward" not in net.layer.__dict__
