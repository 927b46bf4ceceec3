"""The plug-in of vLLM: found by vLLM's own loader, switched by the variable, refused by name where it cannot be used.

vLLM's modules are those of the published wheel, with stubs for the rest: `vllm_stage` says which.
"""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tests.integrations.vllm_stage import Engine, failed, installed, vllm_engine  # noqa: E402 - found from the root

import tunebook as tb  # noqa: E402
from tunebook.envs import envs  # noqa: E402
from tunebook.errors import UsageError  # noqa: E402


def taken_over(engine: Engine) -> bool:
    return inspect.unwrap(engine.warmup.flashinfer_autotune) is not engine.warmup.flashinfer_autotune


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Engine]:
    """vLLM without tunebook."""
    installed()
    with vllm_engine(tmp_path / "vllm") as found:
        yield found


@pytest.mark.parametrize(
    ("variables", "on"),
    [({}, False), ({"TUNEBOOK_FLASHINFER": "0"}, False), ({"TUNEBOOK_FLASHINFER": "1"}, True)]
    + [({"TUNEBOOK_FLASHINFER": "1", "VLLM_PLUGINS": names}, "tunebook" in names) for names in ("", "tunebook,other")],
)
def test_vllm_loads_the_plug_in_and_the_variable_decides(
    bare: Engine, variables: dict[str, str], on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own loader finds the entry point of the installed package."""
    monkeypatch.delenv("TUNEBOOK_FLASHINFER")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    importlib.import_module("vllm.plugins").load_general_plugins()
    assert "vllm.model_executor.warmup.kernel_warmup" not in sys.modules, "importing it there would be early and heavy"
    assert taken_over(bare) is on


def test_the_modules_loader_is_its_own_again(bare: Engine) -> None:
    tb.vllm.enable()
    finders = len(sys.meta_path)
    assert inspect.getsource(inspect.unwrap(bare.warmup.flashinfer_autotune)).startswith("def flashinfer_autotune(")
    assert type(bare.warmup.__spec__.loader) is type(bare.wrappers.__spec__.loader)
    assert len(sys.meta_path) == finders - 1


def test_a_module_that_is_there_already_is_taken_over_once(bare: Engine) -> None:
    before = bare.warmup.flashinfer_autotune
    tb.vllm.enable()
    after = bare.warmup.flashinfer_autotune
    tb.vllm.enable()
    assert bare.warmup.flashinfer_autotune is after
    assert inspect.unwrap(after) is before
    assert inspect.signature(after) == inspect.signature(before)


def test_enabling_reaches_the_processes_that_are_started(bare: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEBOOK_FLASHINFER", "0")
    tb.vllm.enable()
    assert envs.TUNEBOOK_FLASHINFER.get() is True
    code = "import os; print(os.environ['TUNEBOOK_FLASHINFER'])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip().lower() in ("1", "true")
    tb.vllm.disable()
    assert envs.TUNEBOOK_FLASHINFER.get() is False


def test_enabling_twice_before_the_import_is_enabling_once(bare: Engine) -> None:
    finders = len(sys.meta_path)
    tb.vllm.enable()
    tb.vllm.enable()
    assert len(sys.meta_path) == finders + 1
    assert taken_over(bare)


@pytest.mark.parametrize("version", ["0.31.0", "0.33.0", "0.32.1rc1.dev7+gabc", "unknown"])
def test_other_versions_are_refused_by_name(
    tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TUNEBOOK_FLASHINFER", "1")
    with vllm_engine(tmp_path, version=version):
        tb.vllm.plugin()
        assert f"vLLM {version} is not one that tunebook knows (0.32)" in failed(caplog)
        with pytest.raises(UsageError, match="is not one that tunebook knows"):
            tb.vllm.enable()


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1", "0.32.0.post1", "0.32.0+cu129"])
def test_releases_of_the_known_version_are_taken(tmp_path: Path, version: str) -> None:
    with vllm_engine(tmp_path, version=version):
        finders = len(sys.meta_path)
        tb.vllm.enable()
        assert len(sys.meta_path) == finders + 1


def test_a_warm_up_that_was_changed_is_left_alone(bare: Engine, caplog: pytest.LogCaptureFixture) -> None:
    before = bare.warmup.flashinfer_autotune
    del bare.warmup._all_ranks_have_matching_cache
    tb.vllm.enable()
    assert "has no _all_ranks_have_matching_cache" in failed(caplog)
    assert bare.warmup.flashinfer_autotune is before


def test_without_vllm_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UsageError, match=r"vLLM cannot be imported .*; install it: pip install"):
        tb.vllm.enable()


def test_a_switch_that_cannot_be_read_does_not_end_the_engine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TUNEBOOK_FLASHINFER", "perhaps")
    tb.vllm.plugin()
    assert "TUNEBOOK_FLASHINFER" in failed(caplog)


def test_off_the_plug_in_imports_nothing_heavy(cli_environment: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    code = "import sys; from tunebook.integrations.vllm import plugin; plugin(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=cli_environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert not {"torch", "vllm", "flashinfer", "numpy", "transformers"} & set(done.stdout.split())
