"""The example kernel in C: figures against fp64, its library on disk, its version, a machine without a compiler."""

from __future__ import annotations

import shutil
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.envs import envs
from tunebook.ops import load_file, runner_version

EXAMPLES = Path(__file__).parents[2] / "examples"
NO_COMPILER = not any(shutil.which(name) for name in ("cc", "gcc", "clang"))
needs_compiler = pytest.mark.skipif(NO_COMPILER, reason="no C compiler here")


class Recorder:
    """Stands in for the op, so that the example does not stay registered for other tests."""

    def __init__(self) -> None:
        self.declared: dict[str, dict[str, Any]] = {}

    def runner(self, name: str, **declared: Any) -> Callable[[Any], Any]:
        self.declared[name] = declared
        return lambda function: function


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[[str], tuple[types.ModuleType, Recorder]]]:
    """Copy the example into a directory and load it there, with a cache directory of its own."""
    before = list(sys.path)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        stack.enter_context(envs.TUNEBOOK_CACHE_DIR.override(tmp_path / "cache"))

        def make(place: str = "example") -> tuple[types.ModuleType, Recorder]:
            linear = Recorder()
            patch.setattr(tb, "kernels", types.SimpleNamespace(linear=linear), raising=False)
            (tmp_path / place).mkdir(exist_ok=True)
            for file in EXAMPLES.glob("my_linear.*"):
                if not (tmp_path / place / file.name).exists():
                    shutil.copy(file, tmp_path / place)
            module = load_file(tmp_path / place / "my_linear.py")
            patch.delitem(sys.modules, module.__name__)
            return module, linear

        yield make
    sys.path[:] = before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@needs_compiler
def test_it_agrees_with_fp64(load, dtype: torch.dtype) -> None:
    example, recorder = load()
    space = recorder.declared["my_linear"]["space"]
    torch.manual_seed(0)
    for leading, n, k in [((1,), 64, 128), ((7,), 37, 100), ((2, 3), 130, 15), ((5,), 1, 1), ((16,), 40, 257)]:
        x, weight, bias = torch.randn(*leading, k), torch.randn(n, k), torch.randn(n)
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        for offset in (None, bias):
            exact = x.double() @ weight.double().T + (0 if offset is None else offset.double())
            # Summing in fp32 in any order, then at most half a unit of the output's last place.
            room = (x.double().abs() @ weight.double().abs().T + bias.double().abs()) * (k + 2) * 2.0**-24
            if dtype == torch.bfloat16:
                room = room * 1.01 + exact.abs() * 2.0**-8
            for block in space["block"]:
                for threads in space["threads"]:
                    y = example.my_linear(x, weight, offset, block=block, threads=threads)
                    assert y.dtype == dtype
                    assert y.shape == (*leading, n)
                    assert bool(((y.double() - exact).abs() <= room).all()), (leading, n, k, block, threads)


@needs_compiler
def test_bf16_is_rounded_to_nearest_even(load) -> None:
    """With one column the product is exact in fp32: what is left is the rounding, ties, overflow and NaN included."""
    example, _ = load()
    x = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).reshape(-1, 1)
    weight = torch.tensor([[1.0], [1.5], [-1.0078125], [3.0], [1e-30]]).to(torch.bfloat16)
    y = example.my_linear(x, weight, None, block=8, threads=1)
    expected = (x.float() * weight.float().T).to(torch.bfloat16)
    assert torch.equal(y.isnan(), expected.isnan())
    # What is denormal may be flushed by whoever computes it.
    usual = (expected.float().abs() >= 2.0**-126) & ~expected.isnan()
    assert torch.equal(y[usual], expected[usual])
    assert int(usual.sum()) > 200_000


@needs_compiler
def test_inputs_need_not_be_contiguous_and_are_left_alone(load) -> None:
    example, _ = load()
    x, weight = torch.randn(12, 6).T, torch.randn(12, 20).T
    copies = x.clone(), weight.clone()
    y = example.my_linear(x, weight, None, block=8, threads=2)
    assert torch.allclose(y, x @ weight.T, atol=1e-5)
    assert torch.equal(x, copies[0])
    assert torch.equal(weight, copies[1])


@needs_compiler
def test_nothing_to_multiply(load) -> None:
    example, _ = load()
    bias = torch.randn(4)
    assert example.my_linear(torch.empty(0, 8), torch.randn(4, 8), bias, block=8, threads=1).shape == (0, 4)
    empty = example.my_linear(torch.empty(3, 0), torch.empty(4, 0), bias, block=8, threads=1)
    assert torch.equal(empty, bias.expand(3, 4))


@needs_compiler
def test_what_it_does_not_take_is_refused_by_name(load) -> None:
    example, _ = load()
    with pytest.raises(TypeError, match=r"float16"):
        example.my_linear(torch.ones(2, 4).half(), torch.ones(3, 4).half(), None, block=8, threads=1)
    with pytest.raises(TypeError, match=r"float32.*bfloat16"):
        example.my_linear(torch.ones(2, 4), torch.ones(3, 4).bfloat16(), None, block=8, threads=1)
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(3, 5\)"):
        example.my_linear(torch.ones(2, 4), torch.ones(3, 5), None, block=8, threads=1)


@needs_compiler
def test_it_is_compiled_once_for_each_content(load, tmp_path) -> None:
    example, _ = load()
    path = example.build()
    stamp = path.stat().st_mtime_ns
    assert path.is_relative_to(tmp_path / "cache")
    assert example.build() == path
    assert path.stat().st_mtime_ns == stamp
    example.SOURCE.write_text(example.SOURCE.read_text() + "/* edited */\n")
    assert example.build() != path
    assert sorted(path.parent.iterdir()) == sorted({path, example.build()})  # and nothing half done


@needs_compiler
def test_an_edit_of_the_c_file_changes_the_version_in_both_ways(load) -> None:
    example, recorder = load("one")
    again, _ = load("two")
    sources = recorder.declared["my_linear"]["sources"]
    first = runner_version(example.my_linear, sources=sources)
    assert runner_version(again.my_linear, sources=sources) == first  # in another place
    bare = runner_version(example.my_linear)

    again.SOURCE.write_text(again.SOURCE.read_text().replace("#define COLS 4", "#define COLS 2"))
    assert runner_version(again.my_linear, sources=sources) != first  # by the source
    assert runner_version(again.my_linear) == bare
    again.LIBRARY = again.load(again.build())
    assert runner_version(again.my_linear) != bare  # by the shared object


@needs_compiler
def test_a_mistake_in_c_is_told_by_the_compilers_words(load, tmp_path) -> None:
    example, _ = load()
    broken = tmp_path / "broken.c"
    broken.write_text("int f(void) { return missing_name; }\n")
    with pytest.raises(RuntimeError, match=r"cannot compile broken\.c: .*broken\.c:1:.*missing_name"):
        example.build(broken, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_without_a_compiler_it_loads_and_gives_the_reason(load, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    example, recorder = load()
    available = recorder.declared["my_linear"]["available"]
    assert available() == "no C compiler (cc) found; apt install gcc"
    assert example.LIBRARY is None


@needs_compiler
def test_with_a_compiler_it_is_available(load) -> None:
    _, recorder = load()
    assert recorder.declared["my_linear"]["available"]() is None
