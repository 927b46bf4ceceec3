"""What the ranks of the tests of FlashInfer under tunebook do, each in a process of its own, over a real gloo group."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tests.integrations.flashinfer_stage import Stage, flashinfer_stage, product_inputs  # noqa: E402 - found from the root

OP = "demo::product"
BUCKETS = (8, 16, 32, 64)


def start(
    rank: int,
    size: int,
    directory: Path,
    *,
    starts: int = 1,
    by_rank: bool = True,
    favourite: tuple[int, int] = (3, 3),
    refuses: tuple[int, ...] = (),
    cached: tuple[int, ...] = (),
    fails: int = -1,
    dies: int = -1,
    timeout: float = 120.0,
    options: dict[str, Any] | None = None,
    on_one: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Engine starts, one after the other, each with one block and one call; what each gave.

    `by_rank`: the runner adds its rank to FlashInfer's key. `favourite` is the fastest tactic on each rank. Rank 1 does not
    take the tactics that it `refuses`. Ranks that are `cached` have tuned alone before. Rank `fails` raises in its dummy
    run, rank `dies` ends there. `options` are the session's, `on_one` further ones on rank 1.
    """
    import tunebook as tb

    os.environ |= {"TUNEBOOK_CACHE_DIR": str(directory / "home"), "TUNEBOOK_RANK_TIMEOUT_S": str(timeout)}
    given = {"seed": rank, **(options or {}), **((on_one or {}) if rank == 1 else {})}
    cache = directory / f"rank{rank}.winners.json"
    with flashinfer_stage() as stage:
        for tactic in range(1, 6):
            stage.costs["Product", tactic] = 0.5 if tactic == favourite[rank % 2] else 1.0 + tactic / 10
        runner = stage.runner(
            "Product",
            (1, 2, 3, 4, 5),
            extras=lambda inputs: (f"rank {rank}",) if by_rank else (),
            valid=lambda inputs, tactic: rank != 1 or tactic not in refuses,
        )
        if rank in cached:
            _block(stage, tb.flashinfer.Session(cache=cache, seed=0), runner, None)
            stage.start_again()
        given_up = "raises" if rank == fails else "dies" if rank == dies else ""
        told = []
        for _ in range(starts):
            _group(stage, True)
            session = tb.flashinfer.Session(cache=cache, **given)
            _block(stage, session, runner, given_up)
            session.close()
            after = stage.module.get_autotune_process_group() is not None
            _group(stage, False)
            told.append(
                {
                    "served": [
                        stage.choose(OP, [runner], stage.config(BUCKETS), product_inputs(r))[1] for r in BUCKETS
                    ],
                    "keys": sorted(session.outcome.verdicts),
                    "winners": sorted(verdict.winner for verdict in session.outcome.verdicts.values()),
                    "runs": sorted(verdict.run for verdict in session.outcome.verdicts.values()),
                    "fresh": len(session.outcome.fresh),
                    "cached": session.outcome.cached,
                    "raced": len({rows for *_, rows in _raced(stage)}),
                    "reduced": [entry for entry in stage.grouped if entry],
                    "group is back": after,
                    "misses": session.outcome.misses,
                    "cache": cache.exists(),
                }
            )
            stage.start_again()
    return told


def _block(stage: Stage, session: Any, runner: Any, given_up: str | None) -> None:
    with session.autotune():
        stage.choose(OP, [runner], stage.config(BUCKETS), product_inputs(16))
        if given_up == "raises":
            raise ZeroDivisionError("in the dummy run")
        if given_up == "dies":
            os._exit(9)


def _group(stage: Stage, on: bool) -> None:
    import torch.distributed as dist

    stage.module.set_autotune_process_group(dist.group.WORLD if on else None)


def _raced(stage: Stage) -> list[tuple[Any, ...]]:
    return [(name, tactic, rows) for (name, tactic, *_), rows in zip(stage.sampled, stage.rows, strict=True)]
