"""What the ranks of the tests of FlashInfer under tunebook do, each in a process of its own, over a real gloo group."""

from __future__ import annotations

import builtins
import contextlib
import importlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
    silent: int = -1,
    nested: bool = False,
    shared: bool = False,
    timeout: float = 120.0,
    options: dict[str, Any] | None = None,
    on_one: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Engine starts, one after the other, each with one block and one call; what each gave.

    `by_rank`: the runner adds its rank to FlashInfer's key. `favourite` is the fastest tactic on each rank. Rank 1 does not
    take the tactics that it `refuses`. Ranks that are `cached` have tuned alone before. Rank `fails` raises in its dummy
    run, rank `dies` ends there, rank `silent` calls nothing. `nested`: the call is made in a block inside the block. `shared`:
    the ranks have one cache. `options` are the session's, `on_one` further ones on rank 1.
    """
    import tunebook as tb

    os.environ |= {"TUNEBOOK_CACHE_DIR": str(directory / "home"), "TUNEBOOK_RANK_TIMEOUT_S": str(timeout)}
    given = {"seed": rank, **(options or {}), **((on_one or {}) if rank == 1 else {})}
    log = _Winners()
    logging.getLogger("tunebook").addHandler(log)
    logging.getLogger("tunebook").setLevel(logging.INFO)
    cache = directory / ("winners.json" if shared else f"rank{rank}.winners.json")
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
        given_up = {fails: "raises", dies: "dies", silent: "silent"}.get(rank, "nests" if nested else "")
        told = []
        for _ in range(starts):
            _group(stage, True)
            session = tb.flashinfer.Session(cache=cache, **given)
            answer = _block(stage, session, runner, given_up)
            session.close()
            after = stage.module.get_autotune_process_group() is not None
            _group(stage, False)
            told.append(
                {
                    "served": [
                        stage.choose(OP, [runner], stage.config(BUCKETS), product_inputs(r))[1] for r in BUCKETS
                    ],
                    "in the block": answer,
                    "keys": sorted(session.outcome.verdicts),
                    "winners": sorted(verdict.winner for verdict in session.outcome.verdicts.values()),
                    "runs": sorted(verdict.run for verdict in session.outcome.verdicts.values()),
                    "fresh": len(session.outcome.fresh),
                    "cached": session.outcome.cached,
                    "raced": len({rows for *_, rows in _raced(stage)}),
                    "reduced": [entry for entry in stage.grouped if entry],
                    "group is back": after,
                    "said": [log.keys.pop(0) for _ in tuple(log.keys)],
                    "left out": session.outcome.left_out,
                    "misses": session.outcome.misses,
                    "cache": cache.exists(),
                }
            )
            stage.start_again()
    return told


class _Winners(logging.Handler):
    """The keys of problems of which the log tells the winner."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.keys: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        key, _, rest = record.getMessage().partition("@flashinfer: ")
        if "x the default)" in rest:
            self.keys.append(key)


def faults(rank: int, size: int, directory: Path, points: list[str]) -> list[dict[str, str]]:
    """Blocks one after the other, in each of which rank 1 fails at another point: what each ended with. The last one is sound.

    A point is the name of a class or module, of one of its functions, and of the error that this raises, at its first call.
    """
    import tunebook as tb

    os.environ |= {"TUNEBOOK_CACHE_DIR": str(directory / "home"), "TUNEBOOK_RANK_TIMEOUT_S": "12"}
    places = {
        "Session": tb.flashinfer.Session,
        "Ledger": importlib.import_module("tunebook.integrations.flashinfer._ledger").Ledger,
        "Team": importlib.import_module("tunebook.integrations.flashinfer._team").Team,
        "_together": importlib.import_module("tunebook.integrations.flashinfer._together"),
    }
    told = []
    with flashinfer_stage() as stage:
        stage.costs["Product", 3] = 0.5
        runner = stage.runner("Product", (1, 2, 3), extras=lambda inputs: (f"rank {rank}",))
        for point in [*points, ""]:
            stage.start_again()
            _group(stage, True)
            session = tb.flashinfer.Session(policy="fresh", seed=rank)
            with pytest.MonkeyPatch.context() as patch:
                if rank == 1 and point:
                    place, name, error = point.split()
                    patch.setattr(places[place], name, _raising(getattr(builtins, error)))
                try:
                    _block(stage, session, runner, "")
                    ended = ""
                except BaseException as raised:  # noqa: BLE001 - an interruption is one of them
                    ended = f"{type(raised).__name__}: {raised}"
            session.close()
            held = stage.module.get_autotune_process_group() is not None and "choose_one" not in vars(stage.tuner)
            threads = sorted(one.name for one in threading.enumerate() if one.name == "tunebook-ranks")
            told.append({"ended": ended, "back": str(held), "threads": " ".join(threads)})
    return told


def _raising(error: type[BaseException]) -> Callable[..., None]:
    def raises(*args: Any, **kwargs: Any) -> None:
        raise error("at this point")

    return raises


def _block(stage: Stage, session: Any, runner: Any, given_up: str | None) -> Any:
    with session.autotune(), session.autotune() if given_up == "nests" else contextlib.nullcontext():
        if given_up == "silent":
            return None
        answer = stage.choose(OP, [runner], stage.config(BUCKETS), product_inputs(16))[1]
        if given_up == "raises":
            raise ZeroDivisionError("in the dummy run")
        if given_up == "dies":
            os._exit(9)
    return answer


def _group(stage: Stage, on: bool) -> None:
    import torch.distributed as dist

    stage.module.set_autotune_process_group(dist.group.WORLD if on else None)


def _raced(stage: Stage) -> list[tuple[Any, ...]]:
    return [(name, tactic, rows) for (name, tactic, *_), rows in zip(stage.sampled, stage.rows, strict=True)]
