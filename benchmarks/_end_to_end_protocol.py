"""The worker's side of end_to_end.py: requests and answers as JSON lines, and what a process can tell of itself.

Imports the standard library alone: it also runs in vLLM's environment.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

#: What every contestant runs before a measured prefill, to wake its threads. Before a decode it runs that decode.
WARM = "decode_1"


def leave_folder() -> None:
    """Take this folder off the module path: engines look for packages that are named like scripts here, such as `kernels`."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != here]


def serve(handlers: Mapping[str, Callable[..., Any]]) -> None:
    """Answer requests from stdin until it ends.

    A request is ``{"do": handler, **arguments}``; its answer ``{"result": …, "idle": …}`` or ``{"error": one line}``. "idle" is
    the processor time, in seconds, that the process used since its last answer: waiting should take none. What the handlers
    print to stdout goes to stderr.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    before = time.process_time()
    for line in sys.stdin:
        idle = time.process_time() - before
        request = json.loads(line)
        try:
            answer = {"result": handlers[request.pop("do")](**request), "idle": idle}
        except Exception as error:  # noqa: BLE001 - whatever an engine raises is this answer
            import traceback

            traceback.print_exc()
            lines = str(error).strip().splitlines() or [""]
            answer = {"error": f"{type(error).__name__}: {lines[0]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        before = time.process_time()


def timed(step: Callable[[], Any], warm: Callable[[], Any] | None, steps: int) -> dict[str, Any]:
    """Seconds a step over `steps` steps, after an unmeasured `warm`; the processors kept busy; what the last step returned."""
    if warm is not None:
        warm()
    result = None
    busy, start = time.process_time(), time.perf_counter()
    for _ in range(steps):
        result = step()
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    return {"seconds": seconds / steps, "busy": busy / seconds, "tokens": result}


def memory() -> dict[str, int]:
    """Resident bytes now and at most since `forget_peak`; nothing where the system has no /proc."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS:", "VmHWM:")))
    return {name: int(fields[field].split()[0]) * 1024 for name, field in (("now", "VmRSS"), ("peak", "VmHWM"))}


def forget_peak() -> None:
    """Let the peak of `memory` begin anew, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return
