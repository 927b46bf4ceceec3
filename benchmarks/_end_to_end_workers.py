"""The other side of `_end_to_end_protocol`: starts worker processes, asks them, ends them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


class WorkerError(Exception):
    """A worker that failed, in one line."""


class InputError(Exception):
    """What was asked for cannot be had, in one line."""


class Worker:
    """A process that answers requests. Used as a context manager; what it writes besides goes to `log`."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.idle = 0.0  #: processor seconds that it used while it was asked nothing
        self._log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, env=environment, text=True
            )

    def ask(self, do: str, **arguments: Any) -> Any:
        """The result of one request. Raises WorkerError for a failure there, and for a process that has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
            raise WorkerError(
                f"{self.name}: the process ended, status {self._process.wait()}; its last words: {said[-1]}"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name}: {do}: {answer['error']}")
        self.idle += answer["idle"]
        return answer["result"]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def engine_worker(mode: str, threads: int, logs: Path, name: str = "") -> Worker:
    """A worker of `_engine_worker.py` in this environment, with so many threads."""
    command = [sys.executable, str(HERE / "_engine_worker.py"), mode]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    name = name or mode
    return Worker(name, command, environment, logs / f"{name}.log")
