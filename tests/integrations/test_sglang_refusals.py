"""SGLang under tunebook where something goes wrong, and which versions are taken: the wheel's step as in `sglang_stage`."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tests.integrations.flashinfer_stage import Stage, product_inputs  # noqa: E402 - found from the root
from tests.integrations.sglang_stage import AUTOTUNE, OP, Dummy, Engine, Stream, entries, served  # noqa: E402

import tunebook as tb  # noqa: E402
from tunebook.envs import envs  # noqa: E402
from tunebook.errors import UsageError  # noqa: E402

# ---------------------------------------------------------------- failures


def test_a_dummy_run_without_memory_is_sglangs_to_handle(
    engine: Engine, stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SGLANG_FLASHINFER_AUTOTUNE_EXTEND", "1")
    engine.step(Dummy(stage))

    def forward() -> None:
        Dummy(stage, rows=64)()
        raise torch.OutOfMemoryError

    with caplog.at_level(logging.INFO):
        engine.extend(forward)
    assert "not enough free memory" in caplog.text
    assert "without tunebook" not in caplog.text
    assert (served(stage), served(stage, 64)) == (1, -1)
    assert not stage.tuner.is_tuning_mode
    assert "choose_one" not in vars(stage.tuner)
    assert Stream.current == "default"
    dummy = Dummy(stage, rows=32)
    engine.step(dummy, draft=True)
    assert dummy.served == [-1, 1], "the session goes on"


def test_any_other_error_of_the_dummy_run_goes_on_as_it_is(engine: Engine, stage: Stage) -> None:
    def forward() -> None:
        raise ZeroDivisionError("in the model")

    with pytest.raises(ZeroDivisionError, match="in the model"):
        engine.step(forward)
    assert not stage.tuner.is_tuning_mode
    assert engine.runs == []


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("tunebook") and r.levelno >= logging.WARNING]


def test_without_a_session_flashinfer_tunes(
    engine: Engine, stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage.noise = 0.0
    engine.ours.mkdir(parents=True)  # cannot be a cache
    target, draft = Dummy(stage, rows=8), Dummy(stage, rows=16)
    engine.step(target)
    engine.step(draft, draft=True)
    (line,) = lines(caplog)
    assert line.startswith("FlashInfer tunes without tunebook: cache=")
    assert "is a directory" in line
    assert len(engine.dummy_runs) == 2
    assert {sample[2:] for sample in stage.sampled} == {(10, 3)}
    assert (target.served, draft.served) == ([1], [1])
    caplog.clear()
    engine.start_again()
    engine.ours.rmdir()
    monkeypatch.setattr("flashinfer.__version__", "0.9.1")
    dummy = Dummy(stage)
    engine.step(dummy)
    (line,) = lines(caplog)
    assert "flashinfer-python 0.9.1 is not one that tunebook knows" in line
    assert dummy.served == [1]


def test_what_goes_wrong_while_it_tunes_is_said_and_flashinfer_tunes(
    engine: Engine, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.noise = 0.0
    hashed: list[int] = []

    def forward() -> None:
        runner = stage.runner("Plain", (1, 2))

        def spoilt(self: Any) -> int:
            if stage.sampled and not hashed:
                hashed.append(1)
                raise LookupError("no\nhash")
            return 7

        kind: Any = type(runner)
        kind.__hash__ = spoilt
        stage.choose(OP, [runner], stage.config(), product_inputs())

    engine.step(forward)
    (line,) = lines(caplog)
    assert line == "FlashInfer tunes without tunebook: LookupError: no; hash"
    assert hashed
    assert (10, 3) in {sample[2:] for sample in stage.sampled}
    assert list(entries(engine.file()).values()) == [["Plain", 1]]
    dummy = Dummy(stage, rows=32)
    engine.step(dummy, draft=True)
    assert dummy.served == [1], "and so it does in the steps that follow"
    assert len(lines(caplog)) == 1


def test_a_file_that_is_no_cache_of_flashinfers_is_sglangs_to_refuse(engine: Engine, stage: Stage) -> None:
    """As without tunebook."""
    engine.file().write_text("{")
    with pytest.raises(json.JSONDecodeError):
        engine.step(Dummy(stage))


def test_a_cache_of_ours_that_cannot_be_read_is_tuned_again(engine: Engine, stage: Stage) -> None:
    engine.ours.write_text("{")
    dummy = Dummy(stage)
    engine.step(dummy)
    assert dummy.served == [-1, 1]


# ---------------------------------------------------------------- which SGLang


@pytest.fixture
def of_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(version: str) -> None:
        metadata = tmp_path / "other" / f"sglang-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True)
        metadata.write_text(f"Metadata-Version: 2.4\nName: sglang\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(tmp_path / "other"))

    return put


def registered() -> list[str]:
    registry = importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry
    return sorted(target for target, hooks in registry._hooks.items() if hooks)


@pytest.mark.parametrize("version", ["0.5.22", "0.5.24", "0.6.0", "0.5.23.dev3+g12"])
def test_other_versions_are_refused_by_name(
    off: Engine, of_version: Any, version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    of_version(version)
    with pytest.raises(
        UsageError, match=f"SGLang {version.replace('+', '.')} is not one that tunebook knows \\(0.5.23\\)"
    ):
        tb.sglang.enable()
    monkeypatch.setenv("TUNEBOOK_FLASHINFER", "1")
    tb.sglang.plugin()
    (line,) = lines(caplog)
    assert line.startswith(f"FlashInfer tunes without tunebook: SGLang {version} is not one")
    assert registered() == []


@pytest.mark.parametrize("version", ["0.5.23", "0.5.23.post1", "0.5.23+cu130"])
def test_known_versions_are_taken(off: Engine, of_version: Any, version: str) -> None:
    of_version(version)
    tb.sglang.enable()
    assert len(registered()) == 3


def test_a_changed_step_is_refused(off: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(off.module, "maybe_flashinfer_autotune_extend", lambda runner, tokens: None)
        with pytest.raises(UsageError, match=r"maybe_flashinfer_autotune_extend of .* takes other arguments"):
            tb.sglang.enable()
        patch.delattr(off.module, "run_flashinfer_autotune_forward")
        with pytest.raises(UsageError, match="has no run_flashinfer_autotune_forward"):
            tb.sglang.enable()
    assert registered() == []


def test_without_the_package_the_message_says_how_to_get_it(off: Engine) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, AUTOTUNE, None)
        with pytest.raises(UsageError, match=r"SGLang cannot be imported .* pip install 'sglang==0.5.23'"):
            tb.sglang.enable()


def test_enabling_twice_hooks_once_and_is_undone_by_disable(
    off: Engine, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    tb.sglang.enable()
    tb.sglang.enable()
    assert envs.TUNEBOOK_FLASHINFER.get(), "which the engine's processes inherit"
    dummy = Dummy(stage)
    off.step(dummy)
    assert len(dummy.served) == 2
    tb.sglang.disable()
    assert not envs.TUNEBOOK_FLASHINFER.get()
    dummy = Dummy(stage, rows=32)
    off.step(dummy)
    assert len(dummy.served) == 1
    monkeypatch.setenv("TUNEBOOK_FLASHINFER", "perhaps")
    off.step(dummy)
    assert len(dummy.served) == 2


def test_a_plug_in_that_is_called_twice_hooks_once(off: Engine, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEBOOK_FLASHINFER", "1")
    for _ in range(2):
        tb.sglang.plugin()
    importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry.apply_hooks()
    dummy = Dummy(stage)
    off.step(dummy)
    assert len(dummy.served) == 2


def test_the_names_that_others_imported_are_hooked_too(off: Engine, stage: Stage) -> None:
    """SGLang's runners import the step's functions by name."""
    importer: Any = ModuleType("sglang.srt.importer")
    importer.function = off.module.run_flashinfer_autotune_forward
    sys.modules["sglang.srt.importer"] = importer
    tb.sglang.enable()
    dummy = Dummy(stage)
    importer.function(off.model_runner(), dummy, run_lm_head=False)
    assert dummy.served == [-1, 1]
