"""SGLang's own ``load_plugins()``, in a process of its own, and tunebook's entry point as it was installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

import tunebook

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tests.integrations.engine_wheels import SGLANG  # noqa: E402 - found from the root

pytestmark = pytest.mark.skipif(not SGLANG.is_there, reason="SGLang's files are not there; `make test` unpacks them")

LOGGED = "import logging; logging.basicConfig(level=logging.INFO, format='%(levelname)s %(name)s: %(message)s')\n"

#: A process of the engine that runs no model, such as the one that turns tokens into text. Parents are namespace packages.
WITHOUT_MODEL = (
    LOGGED
    + """
import json, sys
from sglang.srt.plugins import load_plugins
from sglang.srt.plugins.hook_registry import HookRegistry
load_plugins()
print(json.dumps({"hooked": sorted(HookRegistry._patched), "imported": sorted(sys.modules)}))
"""
)

#: A scheduler's process: what is around the step is stubbed as `sglang_stage` says.
SCHEDULER = (
    LOGGED
    + """
import json, sys
from pathlib import Path
from tests.integrations.flashinfer_stage import flashinfer_stage, product_inputs
from tests.integrations.sglang_stage import sglang_stage
with flashinfer_stage() as stage, sglang_stage(stage, Path(sys.argv[1])) as engine:
    from sglang.srt.plugins import load_plugins
    from sglang.srt.plugins.hook_registry import HookRegistry
    stage.costs = {("Plain", 1): 0.5}
    load_plugins()
    imported = sorted(sys.modules)
    runner, config, served = stage.runner("Plain", (1, 2)), stage.config(), []
    engine.step(lambda: served.append(stage.choose("demo::product", [runner], config, product_inputs())[1]))
    engine.serve()
    hooked = sorted(HookRegistry._patched)
    told = {"served": served, "runs": len(engine.runs), "ours": engine.ours.exists()}
print(json.dumps({"hooked": hooked, "imported": imported, **told}))
"""
)


def run(program: str, home: Path, **variables: str) -> tuple[dict[str, Any], str]:
    """What the program printed, and its log."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TUNEBOOK_", "SGLANG_"))}
    paths = [str(Path(tunebook.__file__).parents[1]), str(SGLANG.place), str(ROOT)]
    done = subprocess.run(
        [sys.executable, "-c", program, str(home)],
        env={**inherited, "PYTHONPATH": os.pathsep.join(paths), "TUNEBOOK_CACHE_DIR": str(home / "cache"), **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found, done.stderr


def test_the_entry_point_is_installed() -> None:
    (point,) = entry_points(group="sglang.srt.plugins", name="tunebook")
    assert point.load() is tunebook.sglang.plugin


@pytest.mark.parametrize("variables", [{}, {"TUNEBOOK_FLASHINFER": "1"}])
def test_a_process_without_a_model_imports_and_hooks_nothing(tmp_path: Path, variables: dict[str, str]) -> None:
    found, log = run(WITHOUT_MODEL, tmp_path, **variables)
    assert "Executed general plugin: tunebook" in log
    assert found["hooked"] == []
    heavy = {"torch", "flashinfer", "numpy", "msgspec", "tunebook.store", "sglang.srt.model_executor"}
    assert not heavy & set(found["imported"])


def test_a_wrong_value_is_one_line_of_the_log(tmp_path: Path) -> None:
    found, log = run(WITHOUT_MODEL, tmp_path, TUNEBOOK_FLASHINFER="perhaps")
    assert found["hooked"] == []
    (line,) = [line for line in log.splitlines() if "tunebook.sglang" in line]
    assert line.startswith("ERROR tunebook.sglang: FlashInfer tunes without tunebook: TUNEBOOK_FLASHINFER='perhaps'")
    assert "Traceback" not in log


def test_a_scheduler_tunes_with_it_where_the_variable_is_on(tmp_path: Path) -> None:
    found, log = run(SCHEDULER, tmp_path, TUNEBOOK_FLASHINFER="1")
    assert (found["served"], found["runs"], found["ours"]) == ([-1, 1], 1, True)
    assert len(found["hooked"]) == 3
    assert "FlashInfer's problems so far: 1 met, 1 tuned" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("variables", [{}, {"TUNEBOOK_FLASHINFER": "1", "SGLANG_PLUGINS": "another"}])
def test_it_is_as_without_tunebook_elsewhere(tmp_path: Path, variables: dict[str, str]) -> None:
    found, _ = run(SCHEDULER, tmp_path, **variables)
    assert (found["served"], found["runs"], found["ours"], found["hooked"]) == ([1], 0, False, [])
    assert not {"tunebook.store", "tunebook.integrations.flashinfer"} & set(found["imported"])
