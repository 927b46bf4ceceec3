"""Gives a loaded model memory of its own, instead of pages of the files that it came from."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def own_memory(model: PreTrainedModel) -> None:
    """Copy every tensor of a model that lies in a memory-mapped safetensors file.

    Such a tensor starts at any multiple of eight bytes and cannot have huge pages, so a kernel timed on it is timed on
    the file's layout; and a file that changes under it changes the weights, or kills the process.
    """
    mapped = _mapped_files(Path("/proc/self/maps"))
    for tensor in chain(model.parameters(), model.buffers()):
        start = tensor.data_ptr()
        if mapped is None or any(first <= start < last for first, last in mapped):
            tensor.data = tensor.data.clone()  # in place, so that tied weights stay tied


def _mapped_files(maps: Path) -> list[tuple[int, int]] | None:
    """Give the address ranges of mapped safetensors files, or None where the system does not tell."""
    try:
        lines = maps.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    ranges = []
    for line in lines:
        # "7f2c1000-7f2c9000 r--p 00000000 fe:00 1234   /path/of the/file.safetensors", " (deleted)" if it was replaced
        if line.removesuffix(" (deleted)").endswith(".safetensors"):
            first, _, last = line.split(maxsplit=1)[0].partition("-")
            ranges.append((int(first, 16), int(last, 16)))
    return ranges
