"""A process that serves takes up what another one has published since, without a restart."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.engine import ModelRunner, requests

pytestmark = pytest.mark.usefixtures("clean_ops")

Cli = Callable[..., subprocess.CompletedProcess[str]]
IDS = torch.arange(6).reshape(1, 6)


def logits(runner: ModelRunner) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = runner.loaded.model(IDS).logits
    return result


def test_a_serving_engine_takes_up_what_another_process_has_tuned(tmp_path: Path, cli: Cli) -> None:
    cache = tmp_path / "shared.json"
    with ModelRunner("tiny-moe", threads=1) as runner:
        cold = runner.autotune(cache=cache, policy="replay", wanted=requests((1,), (2,)))
        assert cold.plan is None
        nothing = runner.reload()
        assert (nothing.changed, runner.plan) == ({}, None)
        assert "no plan" in nothing.why
        before = logits(runner)

        tune = ("tune", "tiny-moe", "--decode", "1", "--prefill", "2", "--budget", "4", "--cache", cache, "--json")
        plan = json.loads(cli(tmp_path / "home", *tune).stdout)["plan"]
        reloaded = runner.reload()
        assert runner.plan is not None
        assert runner.plan.tactics == plan["tactics"]
        serves = {key: name for key, name in plan["tactics"].items() if name != "default"} if plan["active"] else {}
        assert {key: now for key, (_, now) in reloaded.changed.items()} == serves
        assert all(former == "default" for former, _ in reloaded.changed.values())
        assert str(cache) in reloaded.why
        now = logits(runner)  # bf16: within its noise
        assert (now - before).float().norm() < 0.05 * before.float().norm()

        again = runner.reload()
        assert again.changed == {}
        assert "the one that serves" in again.why

        # A cache that is gone, or broken, takes nothing away from what serves.
        content, served = cache.read_text(), dict(runner.scope.tactics)
        for broken in (None, content[:-100]):
            cache.unlink() if broken is None else cache.write_text(broken)
            kept = runner.reload()
            assert (kept.changed, dict(runner.scope.tactics)) == ({}, served)
            assert "what serves stays" in kept.why
            assert kept.misses

        # A plan that others have decided otherwise about since.
        document = json.loads(content)
        (changed,) = document["plans"].values()
        changed |= {"tactics": dict.fromkeys(changed["tactics"], "default"), "layouts": {}, "holdings": []}
        changed["active"] = True
        cache.write_text(json.dumps(document))
        back = runner.reload()
        assert {key: former for key, (former, _) in back.changed.items()} == serves
        assert set(runner.plan.tactics.values()) == {"default"}
        assert torch.equal(logits(runner), before)


def test_a_block_that_replays_reads_the_cache_again(demo: Any, restart: Callable[[], None]) -> None:
    """What serves an op of one's own, and a model that is attached by hand, without a `ModelRunner`."""
    demo.op().tune()
    content = demo.cache().read_text()
    restart()
    demo.cache().unlink()
    scale = demo.op()
    with tb.autotune(tune_mode=False):
        assert scale() == "default"
    demo.cache().write_text(content)
    assert scale() == "default"
    with tb.autotune(tune_mode=False) as block:
        pass
    assert block.outcome is not None
    assert block.outcome.cached == 3
    assert scale() == "quick"
