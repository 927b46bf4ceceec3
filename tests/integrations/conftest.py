"""FlashInfer's own autotuner, where the package is installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tests.integrations.flashinfer_stage import Stage, flashinfer_stage  # noqa: E402 - found from the root


@pytest.fixture
def stage() -> Iterator[Stage]:
    if importlib.util.find_spec("flashinfer") is None:
        pytest.skip("flashinfer-python is not installed; `make setup` installs it")
    with flashinfer_stage() as found:
        yield found
