"""FlashInfer's own autotuner, where the package is installed, and a process of SGLang's."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tests.integrations.engine_wheels import SGLANG  # noqa: E402 - found from the root
from tests.integrations.flashinfer_stage import Stage, flashinfer_stage  # noqa: E402
from tests.integrations.sglang_stage import Engine, sglang_stage  # noqa: E402

import tunebook as tb  # noqa: E402


@pytest.fixture
def stage() -> Iterator[Stage]:
    if importlib.util.find_spec("flashinfer") is None:
        pytest.skip("flashinfer-python is not installed; `make setup` installs it")
    with flashinfer_stage() as found:
        yield found


@pytest.fixture
def off(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """SGLang's process without tunebook; Plain's tactic 1 is the fastest, at half the default's time."""
    if not SGLANG.is_there:
        pytest.skip("SGLang's files are not there; `make test` unpacks them")
    stage.costs = {("Plain", 1): 0.5}
    monkeypatch.setenv("TUNEBOOK_FLASHINFER", "0")
    with sglang_stage(stage, tmp_path / "sglang") as engine:
        yield engine


@pytest.fixture
def engine(off: Engine) -> Engine:
    """The same with tunebook."""
    tb.sglang.enable()
    return off
