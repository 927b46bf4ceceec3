"""What the ranks of the tests of vLLM's warm-up do, each in a process of its own, over a real gloo group."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tests.integrations.flashinfer_stage import Stage, flashinfer_stage, product_inputs  # noqa: E402 - found from the root
from tests.integrations.vllm_stage import Rank, Runner, vllm_engine  # noqa: E402

OP = "demo::product"


def starts(rank: int, size: int, directory: Path, faults: list[str]) -> list[dict[str, Any]]:
    """Engine starts, one after the other, each of a model of its own where something goes wrong; what each gave.

    A fault is of rank 1 alone: ``begins`` is a variable that it cannot use, ``tunes`` an error as it tunes, ``installs`` one when
    it has installed some of the winners; none is an empty text.
    """
    import torch.distributed as dist

    import tunebook as tb

    os.environ |= {"TUNEBOOK_CACHE_DIR": str(directory / "home"), "TUNEBOOK_RANK_TIMEOUT_S": "120"}
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logging.getLogger("tunebook.vllm").addHandler(Keep())
    told = []
    session: Any = tb.flashinfer.Session
    tune, install = session._tune, session._install

    def fails(self: Any) -> None:
        raise MemoryError("no room")

    def fails_late(self: Any, *args: Any) -> None:
        if len(self.installed) == 2:
            raise MemoryError("no room")
        install(self, *args)

    with flashinfer_stage() as stage, vllm_engine(directory / "vllm", Rank(rank, size, dist.group.WORLD)) as engine:
        tb.vllm.enable()
        stage.costs = {("Product", tactic): 0.5 if tactic == 3 else 1.0 + tactic / 10 for tactic in range(1, 5)}
        extras = f"rank {rank}"
        product = stage.runner("Product", (1, 2, 3, 4), extras=lambda inputs: (extras,))

        def call(tokens: int) -> int:
            return int(stage.choose(OP, [product], stage.config((4, 16)), product_inputs(tokens))[1])

        for fault in faults:
            stage.start_again()
            lines.clear()
            broken = fault if rank == 1 else ""
            os.environ["TUNEBOOK_BUDGET_S"] = "abc" if broken == "begins" else "60"
            session._tune = fails if broken == "tunes" else tune
            session._install = fails_late if broken == "installs" else install
            engine.warm_up(runner := Runner(call, config_hash=fault or "a model"))
            told.append(_told(stage, runner, call(16), lines))
    return told


def _told(stage: Stage, runner: Runner, served: int, lines: list[str]) -> dict[str, Any]:
    return {
        "served": served,
        "runs": len(runner.runs),
        "samples": len(stage.sampled),
        "own": sum(repeat > 1 for _, _, repeat, _ in stage.sampled),
        "failed": [line for line in lines if line.startswith("FlashInfer tunes without tunebook")],
        "group": stage.module.get_autotune_process_group() is not None,
    }
