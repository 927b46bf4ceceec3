"""Triton's kernels as ops: raced with the correctness check, kept, and served without Triton's own tuner.

Run in Triton's interpreter, on CPU tensors: what is tested is that results are right and who served them, never a time.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.dispatch import FREE, OPS, collecting
from tunebook.errors import OpError
from tunebook.integrations.triton import TritonOp, op
from tunebook.ops import load_file
from tunebook.records import Tactic
from tunebook.store import read_cache

if importlib.util.find_spec("triton") is None:
    pytest.skip(
        "triton is not installed, and `make setup` leaves it out (286 MB to load, 1 GB installed); for these tests: "
        ".venv/bin/python -m pip install triton==3.9.0, then make test ARGS=tests/integrations/test_triton.py",
        allow_module_level=True,
    )

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def kernels() -> Iterator[ModuleType]:
    ops, path = dict(OPS), list(sys.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        module = load_file(Path(__file__).parent / "triton_kernels.py")
        yield module
    OPS.clear()
    OPS.update(ops)
    del sys.modules[module.__name__]
    sys.path[:] = path


@pytest.fixture(autouse=True)
def fresh(kernels: ModuleType, clean_ops: None) -> None:
    kernels.HOOKS.clear()


def grid(n: int) -> Callable[[dict[str, Any]], tuple[int]]:
    return lambda meta: (-(-n // meta["BLOCK"]),)


def tactic(**block: int) -> Tactic:
    (size,) = block.values()
    params = (*block.items(), ("num_warps", 4 if size < 64 else 8), ("num_ctas", 1), ("num_stages", 3))
    return Tactic(runner="triton", params=params)


def tune(tmp_path: Path, **options: Any) -> tb.autotune:
    return tb.autotune(cache=tmp_path / "winners.json", **{"budget_s": 30, "isolate": "never", **options})


def rejections(tuning: Any) -> dict[str, tuple[str, str]]:
    return {rejected.tactic: (rejected.reason, rejected.detail) for _, rejected in tuning.outcome.refused}


def add(kernels: ModuleType, n: int = 100, scale: float = 2.0) -> None:
    x, y = torch.randn(n), torch.randn(n)
    out = torch.full((n,), 7.0)
    kernels.add[grid(n)](x, y, out, n, scale)
    assert torch.allclose(out, (x + y) * scale)


def test_a_kernel_is_raced_kept_and_served_and_tritons_tuner_measures_nothing(
    kernels: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), tune(tmp_path, isolate="unproven") as tuning:
        add(kernels)
        add(kernels, scale=-1.0)
    assert tuning.outcome is not None
    (verdict,) = tuning.outcome.verdicts.values()
    assert verdict.problem == "test::add|n=100|fp32|"
    assert not verdict.rejected
    assert "first runs in a worker process: 2, 0 of them rejected" in caplog.text
    assert verdict.space == 3  # the first of the three races as the default
    assert read_cache(tmp_path / "winners.json", None).verdicts.keys() == {verdict.problem}
    assert FREE.tactics[verdict.problem].name == verdict.winner
    add(kernels)
    add(kernels, n=33)
    assert kernels.add.cache == {}
    assert FREE.counts["default: not tuned"] >= 1


def test_a_cached_verdict_serves_and_nothing_is_measured_again(kernels: ModuleType, tmp_path: Path) -> None:
    with tune(tmp_path):
        add(kernels)
    with tune(tmp_path) as again:
        add(kernels)
    assert again.outcome is not None
    assert (again.outcome.cached, again.outcome.fresh) == (1, [])
    FREE.install({}, replace=True)
    with tune(tmp_path, tune_mode=False, budget_s=None):
        add(kernels)
    assert "test::add|n=100|fp32|" in FREE.tactics


@pytest.mark.parametrize("block", [32, 64])
def test_the_chosen_configuration_runs_with_the_callers_own_tensors(kernels: ModuleType, block: int) -> None:
    FREE.install({"test::hooked|n=90|fp32|": Tactic.parse("triton[BLOCK=32,num_warps=4,num_ctas=1,num_stages=3]")})
    x, out = torch.randn(90), torch.zeros(90)
    kernels.hooked[grid(90)](x, out, 90)
    kernels.hooked[grid(90)](x, out, n=90)
    assert kernels.HOOKS == ["config 32 90"] * 2
    assert kernels.hooked.best_config.kwargs == {"BLOCK": 32}
    assert torch.equal(out, x)
    kernels.hooked[grid(block)](x[:block], out, block)  # another key: the first configuration, which has no hook
    assert len(kernels.HOOKS) == 2


def test_what_no_key_names_is_of_no_account(kernels: ModuleType) -> None:
    """Another scalar, another shape: the verdict of the key serves."""
    FREE.install({"test::add|n=40|fp32|": tactic(BLOCK=64)})
    for scale in (1.0, 2.0, 3.5):
        add(kernels, n=40, scale=scale)
    x = torch.randn(50)
    out = torch.empty(50)
    kernels.add[grid(40)](x, x, out, 40, 1.0)
    assert torch.equal(out[:40], 2 * x[:40])
    assert not FREE.counts["default: not tuned"]


def test_another_dtype_is_another_problem(kernels: ModuleType, tmp_path: Path) -> None:
    x = torch.randn(32)
    with tune(tmp_path) as tuning:
        for one, other in (
            (torch.float32, torch.float32),
            (torch.float64, torch.float64),
            (torch.float32, torch.float64),
        ):
            out = torch.empty(32, dtype=other)
            kernels.add[grid(32)](x.to(one), x.to(other), out, 32, 1.0)
            assert torch.allclose(out, (2 * x).to(other))
    assert tuning.outcome is not None
    assert sorted(tuning.outcome.verdicts) == [
        "test::add|n=32|fp32,y_ptr:fp64,out_ptr:fp64|",
        "test::add|n=32|fp32|",
        "test::add|n=32|fp64|",
    ]


def test_wrong_configurations_are_rejected_by_the_output_that_is_wrong(kernels: ModuleType, tmp_path: Path) -> None:
    x, out = torch.randn(200), torch.empty(200)
    with tune(tmp_path) as tuning:
        kernels.wrong[grid(200)](x, out, 200)
        assert torch.equal(out, x)
    found = rejections(tuning)
    assert found[tactic(BLOCK=32).name][0] == found[tactic(BLOCK=64).name][0] == "correctness"
    assert (
        "out_ptr: 6 values are NaN" in found[tactic(BLOCK=32).name][1]
    )  # never written, though memory held the right ones
    assert "out_ptr: row 0 is off" in found[tactic(BLOCK=64).name][1]
    kernels.wrong[grid(200)](x, out.zero_(), 200)
    assert torch.equal(out, x)


def test_what_is_read_and_written_is_changed_once_a_call(kernels: ModuleType, tmp_path: Path) -> None:
    x, acc, seen = torch.ones(40), torch.full((40,), 5.0), torch.full((40,), 3, dtype=torch.int32)
    with tune(tmp_path) as tuning:
        kernels.accumulate[grid(40)](x, acc, seen, 40)
        assert (acc == 6).all()
        assert (seen == 4).all()  # as with Triton once it has tuned: zeroed for runs that are timed alone
    assert tuning.outcome is not None
    assert not rejections(tuning)
    assert (acc == 6).all(), "measuring wrote the caller's tensor"
    kernels.accumulate[grid(40)](x, acc, seen, 40)
    assert (acc == 7).all()
    assert (seen == 5).all()


@pytest.mark.parametrize("columns", [24, 21])
def test_views_are_read_and_written_by_their_strides(kernels: ModuleType, tmp_path: Path, columns: int) -> None:
    """A transposed input, and an output that is a part of each row of a larger tensor."""
    source, target = torch.randn(columns, 6), torch.zeros(6, 40)
    x, out = source.t(), target[:, 3 : 3 + columns]

    def launch() -> None:
        def blocks(meta: dict[str, Any]) -> tuple[int, ...]:
            assert meta["EVEN"] == (columns % meta["BLOCK"] == 0)
            return (6, -(-columns // meta["BLOCK"]))

        kernels.copy_rows[blocks](x, out, 6, columns, *x.stride(), *out.stride())

    with tune(tmp_path) as tuning:
        launch()
    for _ in range(2):
        assert torch.equal(out, x)
        assert target.count_nonzero() == out.count_nonzero(), "what lies between was written"
        target.zero_()
        FREE.install({f"test::transpose|rows=6,columns={columns}|fp32|": tactic(BLOCK=8)})
        launch()
    assert tuning.outcome is not None
    assert not rejections(tuning)
    assert tuning.outcome.verdicts


def test_pruned_configurations_are_not_run_and_the_default_is_the_first_that_is_left(
    kernels: ModuleType, tmp_path: Path
) -> None:
    x, out = torch.randn(64), torch.empty(64)
    with tune(tmp_path) as tuning:
        kernels.pruned[grid(64)](x, out, 64)
    found = rejections(tuning)
    assert found == {tactic(BLOCK=b).name: ("constraints", "prune_configs_by leaves it out") for b in (16, 128)}
    assert tuning.outcome is not None
    (verdict,) = tuning.outcome.verdicts.values()
    assert {member.tactic for member in verdict.frontier} <= {"default", tactic(BLOCK=64).name}
    FREE.install({}, replace=True)
    kernels.pruned[grid(64)](x, out.zero_(), 64)
    assert torch.equal(out, x)


def test_a_call_of_which_pruning_leaves_nothing_is_an_error_as_with_triton(kernels: ModuleType) -> None:
    x = torch.randn(16)
    with pytest.raises(Exception, match=r"[Nn]o valid autotuner configs|leaves none"):
        kernels.pruned[grid(16)](x, x.clone(), 16)


def test_hooks_run_where_triton_runs_them(kernels: ModuleType, tmp_path: Path) -> None:
    x, out = torch.randn(48), torch.empty(48)
    with tune(tmp_path):
        kernels.hooked[grid(48)](x, out, 48)
    assert "kernel" in kernels.HOOKS
    assert "config 32 48" in kernels.HOOKS
    kernels.HOOKS.clear()
    kernels.hooked[grid(48)](x, out, 48)
    assert "kernel" not in kernels.HOOKS  # that hook is for timed runs alone


def test_an_output_that_is_written_in_part_keeps_the_rest(kernels: ModuleType, tmp_path: Path) -> None:
    def launch(bias: torch.Tensor | None) -> None:
        x, out = torch.randn(50), torch.full((50,), 9.0)
        kernels.partly[grid(50)](x, bias, out, 50)
        assert torch.allclose(out[::2], x[::2] + (0 if bias is None else bias[::2]))
        assert (out[1::2] == 9).all()

    with tune(tmp_path) as tuning:
        launch(None)
        launch(torch.randn(50))
    assert tuning.outcome is not None
    assert not rejections(tuning)
    assert sorted(tuning.outcome.verdicts) == ["test::partly|bias_ptr=None,n=50|fp32|", "test::partly|n=50|fp32|"]
    launch(None)


def test_an_argument_that_is_written_and_not_declared_is_named(kernels: ModuleType, tmp_path: Path) -> None:
    x = torch.randn(20)
    before = x.clone()
    with (
        pytest.raises(OpError, match="test::undeclared: the kernel writes x_ptr, which is not among its outputs"),
        tune(tmp_path),
    ):
        kernels.undeclared[grid(20)](x, torch.empty(20), 20)
    assert torch.equal(x, before)


def test_a_tensor_that_asks_for_a_gradient_is_served_like_any(kernels: ModuleType) -> None:
    """Triton's kernels give no gradient in any case."""
    FREE.install({"test::hooked|n=20|fp32|": Tactic.parse("triton[BLOCK=32,num_warps=4,num_ctas=1,num_stages=3]")})
    with torch.no_grad():
        x = torch.nn.Parameter(torch.randn(20))
    out = torch.empty(20)
    with torch.enable_grad():
        kernels.hooked[grid(20)](x, out, 20)
    assert torch.equal(out, x)
    assert kernels.HOOKS == ["config 32 20"]


def test_what_the_op_does_not_have_is_the_kernels_own(kernels: ModuleType) -> None:
    assert kernels.add.keys == ["n"]
    assert isinstance(kernels.add, TritonOp)
    assert "3 configurations" in repr(kernels.add)
    x, out = torch.randn(8), torch.zeros(8)
    kernels.hooked.run(x, out, 8, grid=(1,), warmup=True)
    assert not out.any()
    kernels.hooked.run(x, out, 8, grid=(1,), warmup=False)
    assert torch.equal(out, x)
    with pytest.raises(AttributeError):
        _ = kernels.add.nothing_of_the_sort
    with pytest.raises(OpError, match=r"launch it as add\[grid\]"):
        kernels.add.op(x, x, out, 8, 0, ())


def test_a_call_that_cannot_be_copied_is_left_to_the_default(
    kernels: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(float):
        pass

    x, out = torch.randn(8), torch.empty(8)
    with caplog.at_level(logging.WARNING), tune(tmp_path) as tuning:
        kernels.hooked[grid(8)](x, out, 8)
        with pytest.raises(Exception, match=r"."):  # nor does Triton take one
            kernels.add[grid(8)](x, x, out, 8, object())
    assert tuning.outcome is not None
    assert list(tuning.outcome.verdicts) == ["test::hooked|n=8|fp32|"]
    assert "argument scale is a object, of which no copy is made" in caplog.text


def test_a_block_that_measures_on_another_device_says_so(kernels: ModuleType) -> None:
    said: list[str] = []

    class Elsewhere:
        device = SimpleNamespace(name="cuda:0")

        def note(self, binding: Any, args: tuple[Any, ...]) -> Any:
            try:
                binding.spec.shape.describe(args)
            except OpError as error:
                said.append(str(error))
            return binding.default

    with collecting(Elsewhere()):
        add(kernels)
    assert said == ["op test::add: x_ptr is on cpu, and this block measures on cuda:0"]


def test_a_key_that_names_a_tensor_is_refused(kernels: ModuleType) -> None:
    triton: Any = importlib.import_module("triton")
    made = op(triton.autotune(configs=[triton.Config({"BLOCK": 16})], key=["x_ptr"])(kernels.bare.fn), name="test::key",
              outputs=["out_ptr"])  # fmt: skip
    with pytest.raises(OpError, match="its key names x_ptr, which is a tensor"):
        made.op.shape.describe((torch.ones(2), torch.ones(2), 2, ()))


def test_heuristics_above_the_tuner_are_arguments_like_others(kernels: ModuleType, tmp_path: Path) -> None:
    triton: Any = importlib.import_module("triton")
    inner = triton.autotune(configs=kernels.configs(16, 32), key=["n"])(kernels.bare.fn)
    made = op(triton.heuristics({"n": lambda args: args["x_ptr"].numel()})(inner), name="test::heuristics",
              outputs=["out_ptr"])  # fmt: skip
    x, out = torch.randn(30), torch.empty(30)
    with tune(tmp_path) as tuning:
        made[grid(30)](x, out)
    assert tuning.outcome is not None
    assert list(tuning.outcome.verdicts) == ["test::heuristics|n=30|fp32|"]
    assert torch.equal(out, x)


def _declared(kernels: ModuleType, **wrong: Any) -> Any:
    triton: Any = importlib.import_module("triton")
    options = {"configs": kernels.configs(16, 32), "key": ["n"], **wrong}
    return triton.autotune(**options)(kernels.bare.fn)


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (
            lambda k: k.bare.fn,
            {},
            r"bare lists no configurations: put @triton.autotune\(configs=…, key=…\) right below",
        ),
        (lambda k: k.bare, {}, r'nothing says what the kernel writes.*op\(outputs=\["n"\]\)'),
        (lambda k: k.bare, {"outputs": ["o_ptr"]}, r"output 'o_ptr' is no argument .*\(x_ptr, out_ptr, n\)"),
        (lambda k: _declared(k, post_hook=print), {"outputs": ["out_ptr"]}, "bare: a post_hook of your own"),
        (lambda k: k.bare, {"outputs": ["out_ptr"], "name": "no name"}, "op 'no name' is not a name"),
    ],
)
def test_a_declaration_that_is_wrong_says_so_in_one_line(
    kernels: ModuleType, make: Any, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(OpError, match=said) as error:
        op(make(kernels), **options)
    assert "\n" not in str(error.value)


def test_configurations_that_differ_in_their_hook_alone_are_refused(kernels: ModuleType) -> None:
    triton: Any = importlib.import_module("triton")
    twins = [triton.Config({"BLOCK": 16}), triton.Config({"BLOCK": 16}, pre_hook=print)]
    with pytest.raises(OpError, match="alike but for their pre_hook"):
        op(_declared(kernels, configs=twins), outputs=["out_ptr"])
    same = [triton.Config({"BLOCK": 16}), triton.Config({"BLOCK": 16})]
    assert "1 configurations" in repr(op(_declared(kernels, configs=same), outputs=["out_ptr"], name="test::same"))


def test_a_name_is_made_of_module_and_kernel(kernels: ModuleType) -> None:
    made = op(outputs=["out_ptr"])(kernels.bare)
    assert isinstance(made, TritonOp)
    assert made.name == f"{kernels.__name__}.bare"


def test_the_pages_example_runs(kernels: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.pages import blocks

    (tmp_path / "page.py").write_text("\n".join(blocks(DOCS / "triton.md", "py")), encoding="utf-8")
    monkeypatch.setenv("TUNEBOOK_CACHE_DIR", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    page = load_file(tmp_path / "page.py")
    monkeypatch.delitem(sys.modules, page.__name__)
    assert isinstance(page.add_kernel, TritonOp)
    assert list((tmp_path / "home").rglob("winners.json"))
