"""The commands that profile a trial: those whose profiler fits the device."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

#: The pipes by which perf is told where the measured calls begin and end.
PIPES = ("repro.ctl", "repro.ack")
#: A kernel is replayed for each group of counters, so that a few calls are enough.
NCU_CALLS = 10


@dataclass(frozen=True, kw_only=True)
class Profiler:
    """`command` is a line for the shell; `installed` whether `tool` is on the PATH here, `about` what it gives."""

    tool: str
    about: str
    command: str
    installed: bool


def profilers(process: Sequence[str], device: str, *, system: str, processor: str) -> list[Profiler]:
    """What can be pointed at `process`, a command line without a profiler.

    device: ``cpu`` or ``cuda:0``; system: ``sys.platform``; processor: the CPU's name.
    """
    if device.startswith("cuda"):
        return [
            _profiler(
                "nsys",
                "kernels and API calls over time, the measured calls alone",
                ["nsys", "profile", "--trace=cuda,nvtx,osrt", "--capture-range=cudaProfilerApi", *process],
            ),
            _profiler(
                "ncu",
                "what limits each kernel",
                ["ncu", "--set", "full", "--profile-from-start", "off", *_limited(process, NCU_CALLS)],
            ),
        ]
    found = []
    if system == "linux":
        pipes = ",".join(PIPES)
        control = [f"--control=fifo:{pipes}", "--delay=-1", "--", *process, "--perf-control", pipes]
        begin = f"[ -p {PIPES[0]} ] || mkfifo {' '.join(PIPES)};"
        found += [
            _profiler("perf", "counters of the measured calls alone", ["perf", "stat", "-d", *control], begin),
            _profiler("perf", "where their time goes", ["perf", "record", "-g", *control], begin),
        ]
    if "intel" in processor.lower() and system in ("linux", "win32"):
        found.append(
            _profiler("vtune", "hot spots of the whole process", ["vtune", "-collect", "hotspots", "--", *process])
        )
    return found


def _profiler(tool: str, about: str, words: Sequence[str], before: str = "") -> Profiler:
    line = shlex.join(words)
    installed = shutil.which(tool) is not None
    return Profiler(tool=tool, about=about, command=f"{before} {line}" if before else line, installed=installed)


def _limited(process: Sequence[str], calls: int) -> list[str]:
    """The same process with so many calls, whatever it was to make."""
    kept, words = [], iter(process)
    for word in words:
        if word in ("--calls", "--seconds", "--warmup"):
            next(words)
        else:
            kept.append(word)
    return [*kept, "--calls", str(calls), "--warmup", "3"]
