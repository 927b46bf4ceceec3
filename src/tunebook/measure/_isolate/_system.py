"""What the operating system offers: dying with the parent, adopting orphans, finding children, limits; as far as there."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Collection
from contextlib import suppress

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
#: The kernel's killer for want of memory takes the process with the highest value first.
_FIRST_TO_GO = "1000"
#: Children that appear while others are killed are killed as well, for at most so long.
_SWEEP_S = 10.0


def die_with(parent: int) -> None:
    """Be killed when the process `parent`, which started this one, ends (Linux)."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the wish was stated
        os._exit(1)


def adopt_orphans() -> None:
    """Children's children whose parents ended become children of this process, so that none gets away (Linux)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def threads() -> int | None:
    """How many threads this process has; None where that cannot be told."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return None


def children() -> set[int]:
    """The processes whose parent is this one, as far as that can be told."""
    mine = os.getpid()
    found: set[int] = set()
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdecimal():
            with suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    # the name in brackets may hold anything; state and parent come after its last bracket
                    fields = file.read().rpartition(b")")[2].split()
                if int(fields[1]) == mine:
                    found.add(int(name))
    return found


def sweep(group: int | None, spared: Collection[int]) -> None:
    """Kill a process group, then every child of this process but the spared ones, until there is none left."""
    if group is not None:
        with suppress(OSError):
            os.killpg(group, signal.SIGKILL)
    end = time.monotonic() + _SWEEP_S
    while (left := children().difference(spared)) and time.monotonic() < end:
        for process in left:
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)
        for process in left:
            with suppress(OSError):
                os.waitpid(process, 0)


def first_to_go() -> None:
    """Where memory runs out, the kernel takes this process before others; and none of its ends leaves a core file."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(_FIRST_TO_GO)
    import resource

    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_memory(more: int | None) -> None:
    """From now on at most `more` bytes of private memory beside what this process has; None: as much as there is.

    What is asked for beyond fails as it does where memory has run out.
    """
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = hard
    if more is not None:
        used = _private_bytes()
        if used is None:
            return
        soft = used + more if hard == resource.RLIM_INFINITY else min(used + more, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _private_bytes() -> int | None:
    """What counts towards the limit: private memory that can be written, in bytes."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("VmData:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None
