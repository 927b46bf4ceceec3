"""Calls of attached modules: by position and by name, and the warnings about gradients that would keep tactics out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tunebook as tb

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
