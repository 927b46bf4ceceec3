"""The Python face: an op of one's own in a few lines, attaching and detaching, and what an import costs."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.engine.models import TINY_ARCHITECTURES
from tunebook.records import Tactic

pytestmark = pytest.mark.usefixtures("clean_ops")

MIXTURES = tuple(name for name in TINY_ARCHITECTURES if name != "gpt_oss")
IDS = torch.arange(8).reshape(1, 8)


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model(ids).logits
    return result


def python(code: str, environment: dict[str, str]) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
    ).stdout


def test_an_op_of_ones_own() -> None:
    served: Counter[str] = Counter()

    @tb.op("demo::soft", buckets={"x": {0: tb.pow2(max=64)}})
    def soft(x: torch.Tensor, t: float) -> torch.Tensor:
        served["default"] += 1
        return torch.stack([torch.softmax(row / t, 0) for row in x for _ in range(20)][::20])

    @soft.runner("whole", space={"split": (1, 2), "wrong": (False, True)})
    def whole(x: torch.Tensor, t: float, *, split: int, wrong: bool) -> torch.Tensor:
        served[f"split={split}, wrong={wrong}"] += 1
        return torch.cat([torch.softmax(part / (t + wrong), 1) for part in x.chunk(split)])

    x = torch.rand(16, 8)
    with tb.autotune(budget_s=20) as block:
        result = soft(x, 0.5)
    torch.testing.assert_close(result, torch.softmax(x / 0.5, 1))
    assert block.outcome is not None
    assert block.outcome.tuned == 5
    assert len([r for _, r in block.outcome.rejected if r.reason == "correctness"]) == 10
    served.clear()
    torch.testing.assert_close(soft(x, 0.5), torch.softmax(x / 0.5, 1))
    torch.testing.assert_close(soft(x=x, t=0.5), torch.softmax(x / 0.5, 1))
    assert served.total() == 2
    assert not any("True" in name or name == "default" for name in served), served


def test_an_op_with_constants_prepares_them_once() -> None:
    made: list[int] = []

    @tb.op("demo::project", constants=("weight",))
    def project(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.stack([sum((weight @ row for _ in range(30)), torch.zeros(len(weight))) / 30 for row in x])

    def transpose(weight: torch.Tensor, *, tile: int) -> torch.Tensor:
        made.append(tile)
        return weight.t().contiguous()

    @project.runner("packed", {"tile": (1, 2)}, prepare=transpose, layout=lambda *, tile: "transposed")
    def packed(x: torch.Tensor, prepared: torch.Tensor, *, tile: int) -> torch.Tensor:
        return x @ prepared

    weight, x = torch.rand(16, 32), torch.rand(8, 32)
    with tb.autotune(budget_s=20) as block:
        project(x, weight)
    assert block.outcome is not None
    assert {tactic.runner for tactic in block.outcome.tactics.values()} == {"packed"}
    assert len(made) == 1, "tactics and buckets of one layout share one copy"
    for rows in (1, 3, 8):
        torch.testing.assert_close(project(x[:rows], weight), x[:rows] @ weight.t())
    other = torch.rand(16, 32)
    torch.testing.assert_close(project(x, other), x @ other.t(), msg="the weights of another call were used")


@pytest.mark.parametrize("architecture", MIXTURES)
def test_a_model_is_attached_tuned_and_given_back(architecture: str, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(architecture).model
    before, short = logits(model), logits(model, IDS[:, :3])
    own = {name: set(vars(module)) for name, module in model.named_modules()}
    with tb.attach(model) as attachment:
        kinds = {binding.spec.name for binding in attachment.bindings.values()}
        layer = {"qkv", "attend", "rms_norm", "add_rms_norm", "residual_add", "router"}
        assert kinds == {"linear", "experts"} | layer
        assert sum(b.spec.name == "experts" for b in attachment.bindings.values()) == 2
        assert torch.equal(logits(model), before), "attaching alone changes what the model computes"
        with tb.autotune(budget_s=4, only_ops=("linear", "experts"), only_runners=("torch", "onednn")) as block:
            assert torch.equal(logits(model), before), "collecting changes what the model computes"
        assert block.outcome is not None
        assert block.outcome.tuned > 0
        experts = [key for key in block.outcome.tactics if key.startswith("experts|")]
        assert [key.rpartition("M≤")[2] for key in sorted(experts)] == ["1", "2", "4", "8"]
        # Whatever won: this one serves every bucket, so that another kernel than the default is really there.
        loop = Tactic.parse("torch[algorithm=loop]")
        attachment.scope.install(dict.fromkeys(experts, loop))
        torch.testing.assert_close(logits(model), before, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(logits(model, IDS[:, :3]), short, rtol=1e-3, atol=1e-3)
        assert attachment.scope.counts["bucket"] > 0
        assert logits(model).isfinite().all()
    assert torch.equal(logits(model), before)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == own
    assert attachment.prepared_bytes == 0
    attachment.detach()


def test_every_tactic_of_a_model_gives_the_models_result(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("mixtral").model
    before = logits(model)
    with tb.attach(model) as attachment:
        with tb.autotune(budget_s=1) as block:
            logits(model)
        assert block.outcome is not None
        for op in (tb.kernels.linear, tb.kernels.experts):
            keys = [key for key in block.outcome.tactics if key.startswith(f"{op.name}|")]
            for runner in op.runners.values():
                if runner.requirement.reason() is not None:
                    continue
                for tactic in runner.combinations:
                    attachment.scope.install(dict.fromkeys(keys, tactic), replace=True)
                    torch.testing.assert_close(logits(model), before, rtol=1e-3, atol=1e-3, msg=str(tactic))


def test_gradients_flow_through_an_attached_model(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("mixtral").model
    with tb.attach(model):
        with tb.autotune(budget_s=1):
            logits(model)
        model.requires_grad_(True)
        model(IDS).logits.sum().backward()
        assert all(p.grad is not None for p in model.parameters())


def test_gpt_oss_is_refused_by_name_and_its_linears_attach(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("gpt_oss").model
    before = logits(model)
    with pytest.raises(tb.TunebookError, match=r"GptOssExperts.*not supported.*ops=\('linear',\)"):
        tb.attach(model)
    assert torch.equal(logits(model), before)
    with tb.attach(model, ops=("linear",)) as attachment:
        assert {binding.spec.name for binding in attachment.bindings.values()} == {"linear"}
        assert torch.equal(logits(model), before)


def test_attaching_twice_is_refused_and_again_after_detaching_is_not(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model().model
    before = logits(model)
    attachment = tb.attach(model)
    with pytest.raises(tb.TunebookError, match="attached already"):
        tb.attach(model)
    with pytest.raises(tb.TunebookError, match="attached already"):
        tb.attach(model, ops=("linear",))
    attachment.detach()
    with tb.attach(model):
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("ops", [("conv",), ("linear", "attention")])
def test_an_unknown_op_is_refused(ops: Iterable[str], tiny_model: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="cannot be attached; there are linear, experts"):
        tb.attach(tiny_model().model, ops=tuple(ops))


def test_a_model_without_anything_to_attach_is_refused() -> None:
    with pytest.raises(tb.TunebookError, match="nothing can be attached"):
        tb.attach(torch.nn.Sequential(torch.nn.ReLU()))


def test_detaching_gives_back_a_forward_that_somebody_else_had_put_there(tiny_model: Callable[..., Any]) -> None:
    """As hooks of other libraries do: they replace ``module.forward`` on the instance."""
    model = tiny_model().model
    seen: list[int] = []
    inner = model.lm_head.forward

    def hooked(x: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        result: torch.Tensor = inner(x)
        return result

    model.lm_head.forward = hooked
    with tb.attach(model):
        logits(model)
        assert len(seen) == 1
    logits(model)
    assert len(seen) == 2


def test_an_exception_in_the_block_detaches(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model().model
    before = logits(model)
    with pytest.raises(ZeroDivisionError), tb.attach(model):
        raise ZeroDivisionError
    assert "forward" not in vars(model.lm_head)
    assert torch.equal(logits(model), before)


# The package itself


def test_importing_is_cheap(cli_environment: Callable[..., dict[str, str]], tmp_path: Any) -> None:
    code = "import sys, tunebook; print(tunebook.__version__, *({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert python(code, cli_environment(tmp_path)).split() == [tb.__version__]


def test_every_public_name_is_there_and_typed() -> None:
    for name in tb.__all__:
        assert getattr(tb, name) is not None
    assert set(dir(tb)) == set(tb.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = tb.nonsense
    assert issubclass(tb.TunebookError, Exception)
    assert tb.kernels.linear.name == "linear"


def test_all_is_importable_in_a_new_process(cli_environment: Callable[..., dict[str, str]], tmp_path: Any) -> None:
    """In each order: a lazy name must not be hidden by a submodule that was imported meanwhile."""
    code = """
import sys
names = __import__("tunebook").__all__
for order in (names, names[::-1]):
    for name in [m for m in sys.modules if m.startswith("tunebook")]:
        del sys.modules[name]
    tunebook = __import__("tunebook")
    for name in order:
        value = getattr(tunebook, name)
        print(name, type(value).__name__)
"""
    lines = python(code, cli_environment(tmp_path)).splitlines()
    assert sorted(lines[: len(lines) // 2]) == sorted(lines[len(lines) // 2 :])
    assert "autotune type" in lines
    assert "op function" in lines
