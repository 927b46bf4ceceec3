"""Real ranks on this machine: processes with torch.distributed over gloo, forked from a server that has imported torch once."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from _forked import FORKED

#: The group's own limit for a collective, in seconds.
COLLECTIVE_S = 300.0
#: Rank 0 holds the store: it stays until the others are done, or for so many seconds.
LINGER_S = 20.0


@dataclass(frozen=True)
class Ended:
    """How a rank's process ended: what its function returned, or the error, its class and text; None where it was killed.

    `seconds` is how long the function took, on the process's own clock.
    """

    code: int | None
    value: Any = None
    error: tuple[str, str] | None = None
    seconds: float = 0.0
    log: str = ""


def run_ranks(
    function: Callable[..., Any], size: int, directory: Path, *arguments: Any, timeout: float = 400.0
) -> list[Ended]:
    """Run ``function(rank, size, directory, *arguments)`` in `size` processes of one gloo group, and say how each ended.

    `function` is importable by its name; what it returns can be written as JSON. Processes that are there after `timeout`
    seconds are killed; their `code` is None.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ranks = [
        FORKED.Process(target=_rank, args=(function, rank, size, directory, arguments), daemon=True)
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    end = time.monotonic() + timeout
    for process in ranks[1:]:
        process.join(max(0.0, end - time.monotonic()))
    _write(directory / "others ended", "")
    ranks[0].join(max(0.0, end - time.monotonic()))
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        if process.exitcode is None:
            process.kill()
            process.join()
    return [_ended(directory, rank, code) for rank, code in enumerate(codes)]


def _ended(directory: Path, rank: int, code: int | None) -> Ended:
    log = directory / f"rank{rank}.log"
    text = log.read_text(errors="replace") if log.exists() else ""
    try:
        said = json.loads((directory / f"rank{rank}.json").read_text())
    except FileNotFoundError:
        return Ended(code, log=text)
    error = said.get("error")
    return Ended(code, said.get("value"), tuple(error) if error else None, said["seconds"], text)


def _rank(function: Callable[..., Any], rank: int, size: int, directory: Path, arguments: Sequence[Any]) -> None:
    """One process: joins the group, runs, leaves a file, and ends at once, whatever threads are still there."""
    log = os.open(directory / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno() if stream is not None else 2)
    import torch

    dist: Any = importlib.import_module("torch.distributed")  # its types leave the stores out
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    port = directory / "port"
    limit = timedelta(seconds=COLLECTIVE_S)
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, size, True, timeout=limit, wait_for_workers=False)
        _write(port, str(store.port))
    else:
        while not port.exists():
            time.sleep(0.01)
        store = dist.TCPStore("127.0.0.1", int(port.read_text()), size, False, timeout=limit)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
    begun = time.monotonic()
    said: dict[str, Any] = {}
    try:
        said["value"] = function(rank, size, directory, *arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is asked for
        import traceback

        traceback.print_exc()
        said["error"] = [type(error).__name__, str(error)]
    said["seconds"] = time.monotonic() - begun
    _write(directory / f"rank{rank}.json", json.dumps(said))
    while rank == 0 and not (directory / "others ended").exists():
        time.sleep(0.02)
        if time.monotonic() - begun - said["seconds"] > LINGER_S:
            break
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)
