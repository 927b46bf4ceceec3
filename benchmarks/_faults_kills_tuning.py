"""A tuning of a second or two in a process of its own, whose tactics leave a trace of each call; what the kills are sent to."""

from __future__ import annotations

import os
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import tunebook as tb
import tunebook.engine

OP = "demo::killed"
#: Problems of 1, 2, 4 and 8 rows.
ROWS = 8
COLUMNS = 4
#: Seconds that the default takes, and each right tactic; noise on a machine in use keeps the races of the latter open.
DEFAULT_S = 2e-3
TACTIC_S = 1e-3
RIGHT = (1, 2, 3, 4)
WRONG = 5
FAILING = 6
BUDGET_S = 2.0


def declare(trace: Path) -> Any:
    """The op, of which each call is in the file `trace`: ``b rows tactic`` when it begins, ``e rows tactic`` when it ended."""
    fd = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def traced(x: torch.Tensor, tactic: str, seconds: float) -> torch.Tensor:
        os.write(fd, f"b {x.shape[0]} {tactic}\n".encode())
        time.sleep(seconds)
        result = x * 2
        os.write(fd, f"e {x.shape[0]} {tactic}\n".encode())
        return result

    @tb.op(OP, buckets={"x": {0: tb.pow2(name="M")}})
    def killed(x: torch.Tensor) -> torch.Tensor:
        return traced(x, "default", DEFAULT_S)

    @killed.runner("r", {"p": (*RIGHT, WRONG, FAILING)}, version="1")
    def r(x: torch.Tensor, *, p: int) -> torch.Tensor:
        if p == FAILING:
            os.write(fd, f"b {x.shape[0]} r[p={p}]\n".encode())
            raise RuntimeError("illegal instruction")
        result = traced(x, f"r[p={p}]", TACTIC_S)
        return result + 1 if p == WRONG else result

    return killed


def tune(folder: Path, trace: Path, told: Connection, *, policy: str = "reuse", resume: Path | None = None) -> None:
    """Tune in a block; ``begun`` is sent with the first problem, ``done`` with the end, or the traceback of what ended it."""
    torch.set_num_threads(1)
    op = declare(trace)
    begun = False

    def progress(done: int, total: int, what: str) -> None:
        nonlocal begun
        if not begun:
            begun = True
            os.truncate(trace, 0)  # what is collected is no part of the tuning
            told.send("begun")

    if resume is not None:
        block = tb.autotune(resume=resume, progress=progress)
    else:
        cache = folder / "cache.json"
        block = tb.autotune(cache=cache, policy=policy, budget_s=BUDGET_S, isolate="never", progress=progress)
    try:
        with block:
            op(torch.ones(ROWS, COLUMNS))
    except BaseException:
        told.send(traceback.format_exc())
        raise
    told.send("done")


assert tunebook.engine  # imported for the server: it is what takes time
