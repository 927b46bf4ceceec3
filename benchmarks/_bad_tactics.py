"""An op with a good tactic and twelve kinds of bad ones, for _faults_tactics.py. Imported by the process that tunes it alone."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

import tunebook as tb

WIDTH = 2048
#: Where a tactic that hangs with a child tells that it does: the process ids of both.
NOTE = "FAULTS_NOTE"


@tb.op("faults::scale", buckets={"x": {0: tb.pow2(max=1)}}, constants=("w",))
def scale(x: Tensor, w: Tensor) -> Tensor:
    """x [1, WIDTH] times w [WIDTH + 1] without its last element: slowly."""
    for _ in range(40):
        y = x * w[:-1]
    return y


def right(x: Tensor, w: Tensor) -> Tensor:
    return torch.mul(x, w[:-1])


scale.runner("good")(right)


@scale.runner("segfault")
def segfault(x: Tensor, w: Tensor) -> Tensor:
    ctypes.string_at(8)
    return right(x, w)


@scale.runner("abort")
def abort(x: Tensor, w: Tensor) -> Tensor:
    os.abort()


@scale.runner("exits")
def exits(x: Tensor, w: Tensor) -> Tensor:
    os._exit(7)


@scale.runner("hangs")
def hangs(x: Tensor, w: Tensor) -> Tensor:
    while True:
        pass


@scale.runner("hangs_with_child")
def hangs_with_child(x: Tensor, w: Tensor) -> Tensor:
    """The child has left the session, and its own parent ends at once."""
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'])"
    subprocess.Popen([sys.executable, "-c", code], start_new_session=True).wait()
    if NOTE in os.environ:
        Path(os.environ[NOTE]).write_text(str(os.getpid()), encoding="ascii")
    while True:
        time.sleep(1.0)


@scale.runner("fills_memory")
def fills_memory(x: Tensor, w: Tensor) -> Tensor:
    held = []
    while True:
        held.append(bytearray(1 << 26))


@scale.runner("wrong")
def wrong(x: Tensor, w: Tensor) -> Tensor:
    return torch.mul(x, 1.01 * w[:-1])


@scale.runner("nan")
def nan(x: Tensor, w: Tensor) -> Tensor:
    y = right(x, w)
    y[0, WIDTH // 2] = torch.nan
    return y


@scale.runner("changes_input")
def changes_input(x: Tensor, w: Tensor) -> Tensor:
    y = right(x, w)
    x.add_(1)
    return y


@scale.runner("changes_weights")
def changes_weights(x: Tensor, w: Tensor) -> Tensor:
    w[-1] += 1  # which no output shows
    return right(x, w)


@scale.runner("raises")
def raises(x: Tensor, w: Tensor) -> Tensor:
    raise ValueError("no such tile")


_SAME: list[Tensor] = []


@scale.runner("same_memory")
def same_memory(x: Tensor, w: Tensor) -> Tensor:
    if not _SAME:
        _SAME.append(torch.empty_like(x))
    return torch.mul(x, w[:-1], out=_SAME[0])
