"""What the ranks of the tests of SGLang under tunebook do, each in a process of its own, over a real gloo group."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tests.integrations.flashinfer_stage import flashinfer_stage, product_inputs  # noqa: E402 - found from the root
from tests.integrations.sglang_stage import sglang_stage  # noqa: E402

OP = "demo::product"
BUCKETS = (8, 16, 32, 64)


def start(rank: int, size: int, directory: Path, *, refused: int = -1, fails: int = -1) -> dict[str, Any]:
    """A start of target and draft. Rank `refused` cannot have a session; rank `fails` goes wrong in the draft's tuning."""
    import torch.distributed as dist

    import tunebook as tb

    os.environ |= {"TUNEBOOK_CACHE_DIR": str(directory / "home"), "SGLANG_CACHE_DIR": str(directory / "sglang")}
    with flashinfer_stage() as stage, sglang_stage(stage, directory / "sglang") as engine:
        stage.noise = 0.0
        stage.costs = {("Product", 3): 0.5}
        engine.tp_rank, engine.tp_group = rank, SimpleNamespace(world_size=size, cpu_group=dist.group.WORLD)
        tb.sglang.enable()
        if rank == refused:
            engine.ours.mkdir(parents=True)
        runner = stage.runner("Product", (1, 2, 3))
        config = stage.config(BUCKETS)
        left = [1] if rank == fails else []

        def of(op: str, spoilt: bool) -> None:
            if spoilt and left:

                def failing(self: Any) -> int:
                    if len(stage.sampled) > samples and left:
                        left.clear()
                        raise LookupError("no hash")
                    return 7

                kind: Any = type(runner)
                kind.__hash__ = failing
            samples = len(stage.sampled)
            stage.choose(op, [runner], config, product_inputs(16))

        engine.step(lambda: of(OP, False))
        engine.step(lambda: of("demo::draft", True), draft=True)
        engine.serve()
        files = {
            name: json.loads(engine.file(draft).read_text()) for name, draft in (("target", False), ("draft", True))
        }
        group_after = stage.module.get_autotune_process_group()
        another = stage.runner("Product", (1, 2, 3))  # a later layer's, while somebody's file is loaded
        with stage.module.autotune(False, cache=str(directory / f"none{rank}.json")):
            later = [stage.choose(OP, [another], config, product_inputs(rows))[1] for rows in BUCKETS]
        return {
            "served": [
                stage.choose(op, [runner], config, product_inputs(rows))[1]
                for op in (OP, "demo::draft")
                for rows in BUCKETS
            ],
            "later": later,
            "flashinfer": [
                (tactic, rows)
                for (_, tactic, repeat, _), rows in zip(stage.sampled, stage.rows, strict=True)
                if repeat == 10
            ],
            "raced": len(
                {rows for (_, _, repeat, _), rows in zip(stage.sampled, stage.rows, strict=True) if repeat == 1}
            ),
            "files": {
                name: sorted((key, value[1]) for key, value in file.items() if key[0] != "_")
                for name, file in files.items()
            },
            "generations": {name: file["_generation"] for name, file in files.items()},
            "caches": engine.ours.is_file(),
            "runs": len(engine.runs),
            "group after": group_after is not None,
            "left": left,
        }
