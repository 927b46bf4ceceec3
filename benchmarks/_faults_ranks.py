"""Ranks that die: four tune together, one is killed at a named stage, and the other three have to say so and end."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _faults import Figure
from _rank_processes import Ended, run_ranks

SIZE = 4
#: TUNEBOOK_RANK_TIMEOUT_S of the scenario.
TIMEOUT_S = 5.0
#: What a busy machine may add to that.
GRACE_S = 2.0
#: Processes that are there so long after the start are counted as hung.
HUNG_S = 90.0
#: So many stages at once: what they do is waiting.
AT_ONCE = 2


@dataclass(frozen=True)
class Stage:
    """Where rank `victim` is killed: as it enters the stage whose name begins with `enters`, or in a call there, the
    `call`-th from then on."""

    name: str
    victim: int
    enters: str
    call: int = 0


STAGES = (
    Stage("joined", 1, "in its dummy run"),
    Stage("problems exchanged", 0, "sharing the work"),
    Stage("in its turn, timing", 2, "timing demo::double", call=20),
    Stage("waiting for its turn", 3, "waiting for its turn"),
    Stage("before gathering", 1, "gathering results"),
    Stage("in a race in lock-step", 2, "racing demo::sum", call=40),
    Stage("before publishing", 0, "publishing"),
    Stage("planning", 3, "planning"),
)


class Awake(threading.Thread):
    """Counts the `seconds` since a file came into being, as far as this process was awake: a machine that stops all its
    processes for a while is nobody's fault."""

    STEP_S = 0.05

    def __init__(self, file: Path) -> None:
        super().__init__(daemon=True)
        self.seconds = 0.0
        self._file = file

    def run(self) -> None:
        while not self._file.exists():
            time.sleep(self.STEP_S)
        last = time.monotonic()
        while True:
            time.sleep(self.STEP_S)
            now = time.monotonic()
            self.seconds += min(now - last, 4 * self.STEP_S)
            last = now


class Killer(logging.Handler):
    """Kills this process at a stage: ranks log each stage as they enter it."""

    def __init__(self, stage: Stage, name: str, noted: Path) -> None:
        super().__init__(logging.DEBUG)
        self._stage = stage
        self._name = name
        self._noted = noted
        self._calls: int | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(f"{self._name}: {self._stage.enters}"):
            if not self._stage.call:
                self._kill()
            self._calls = 0

    def called(self) -> None:
        """A tactic was called."""
        if self._calls is not None:
            self._calls += 1
            if self._calls == self._stage.call:
                self._kill()

    def _kill(self) -> None:
        self._noted.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def tune_and_die(rank: int, size: int, directory: Path, number: int) -> None:
    """One rank: a block with an op that each tunes in turns, and one that all race."""
    stage = STAGES[number]
    os.environ |= {
        "TUNEBOOK_CACHE_DIR": str(directory),
        "TUNEBOOK_RANK_TIMEOUT_S": str(TIMEOUT_S),
        "TUNEBOOK_ISOLATE": "never",
    }
    import torch
    import torch.distributed as dist

    import tunebook as tb
    from tunebook.errors import RankError

    awake = Awake(directory / "killed")
    awake.start()
    killer = Killer(stage, f"rank {rank}", directory / "killed")
    logger = logging.getLogger("tunebook.ranks")
    if rank == stage.victim:
        logger.setLevel(logging.DEBUG)
        logger.addHandler(killer)

    @tb.op("demo::double", buckets={"x": {0: tb.pow2(max=64)}})
    def double(x: torch.Tensor) -> torch.Tensor:
        killer.called()
        time.sleep(1e-3)
        return x * 2

    @double.runner("quick", version="1")
    def quick(x: torch.Tensor) -> torch.Tensor:
        killer.called()
        time.sleep(3e-4)
        return x * 2

    @tb.op("demo::sum", buckets={"x": {0: tb.pow2(max=1)}}, communicates=True)
    def total(x: torch.Tensor) -> torch.Tensor:
        killer.called()
        y = x.clone()
        dist.all_reduce(y)
        return y

    @total.runner("twice", version="1")
    def twice(x: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(torch.zeros(1))
        return total.function(x)  # type: ignore[no-any-return]

    try:
        with torch.inference_mode(), tb.autotune(group=dist.group.WORLD, budget_s=10.0):
            for size_ in (1, 2, 4, 8, 16, 32, 64):
                double(torch.ones(size_, 2))
            total(torch.ones(1, 2))
    except RankError as error:
        (directory / f"named{rank}").write_text(f"{error.rank} {awake.seconds} {error}")
        raise


def kill_at(number: int, directory: Path) -> list[Ended]:
    """Run one stage."""
    return run_ranks(tune_and_die, SIZE, directory, number, timeout=HUNG_S)


def named(stage: Stage, directory: Path, ended: Sequence[Ended]) -> list[str]:
    """What is wrong with each survivor that did not end with the victim's name in time."""
    found = []
    if not (directory / "killed").exists() or ended[stage.victim].code != -signal.SIGKILL:
        return [f"{stage.name}: rank {stage.victim} was not killed"] * (SIZE - 1)
    for rank, one in enumerate(ended):
        if rank == stage.victim:
            continue
        note = directory / f"named{rank}"
        number, late, text = note.read_text().split(" ", 2) if note.exists() else ("", "0", "")
        if one.code is None:
            found.append(f"{stage.name}: rank {rank} hangs")
        elif int(number or -1) != stage.victim or f"rank {stage.victim}" not in text:
            found.append(f"{stage.name}: rank {rank} ended with {one.error or one.value}")
        elif float(late) > TIMEOUT_S + GRACE_S:
            found.append(f"{stage.name}: rank {rank} ended {late} s after the kill")
    return found


def rank_figures(directory: Path) -> list[Figure]:
    """All stages. Tells on standard error what went wrong."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        places = [directory / str(number) for number in range(len(STAGES))]
        every = list(pool.map(kill_at, range(len(STAGES)), places))
    wrong: list[list[str]] = []
    for stage, place, ended in zip(STAGES, places, every, strict=True):
        wrong.append(named(stage, place, ended))
        for text in wrong[-1]:
            print(text, file=sys.stderr)
    survivors = len(STAGES) * (SIZE - 1)
    hung = sum(one.code is None for ended in every for one in ended)
    good, told = sum(not some for some in wrong), survivors - sum(map(len, wrong))
    within = f"within the timeout of {TIMEOUT_S:g} s"
    return [
        Figure(name="ranks_stages", value=good, goal=f"{len(STAGES)} of {len(STAGES)}", met=good == len(STAGES)),
        Figure(
            name="ranks_named_errors",
            value=told,
            goal=f"{survivors} of {survivors} end with an error that names the rank, {within}",
            met=told == survivors,
        ),
        Figure(name="ranks_hung", value=hung, goal="0", met=hung == 0),
    ]


def main() -> Any:
    """``python benchmarks/_faults_ranks.py DIRECTORY``."""
    figures = rank_figures(Path(sys.argv[1]))
    print("\n".join(map(str, figures)))
    return not all(figure.met for figure in figures)


if __name__ == "__main__":
    import _faults_ranks  # its functions have to be found by name in the ranks' processes

    sys.exit(_faults_ranks.main())
