"""Memory that was freed goes back to the system, also what lies between blocks that live."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest
import torch

from tunebook.devices import give_back

MEGABYTE = 1 << 20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def filled(size: int) -> torch.Tensor:
    return torch.ones(size, dtype=torch.uint8)


@pytest.mark.skipif(
    not (Path("/proc/self/statm").exists() and hasattr(ctypes.CDLL(None), "malloc_trim")), reason="not glibc on Linux"
)
def test_freed_blocks_between_living_ones_are_given_back() -> None:
    filled(30 * MEGABYTE)  # freed at once: from then on glibc keeps blocks of this size for later
    blocks = [filled(MEGABYTE) for _ in range(192)]
    living = blocks[::48]
    del blocks
    before = resident()
    give_back()
    assert before - resident() > 150 * MEGABYTE
    assert all(bool((block == 1).all()) for block in living)


def test_giving_back_nothing_is_no_error() -> None:
    give_back()
    give_back()
