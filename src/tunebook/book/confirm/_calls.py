"""The calls of ops again, with live inputs: of a model's phases, or of a script."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tunebook.dispatch import collecting
from tunebook.engine import ModelRunner, autotune, requests
from tunebook.errors import UsageError
from tunebook.ops import load_file
from tunebook.tuner import Collection


def of_model(runner: ModelRunner, phases: Iterable[str]) -> Collection:
    """One step of each phase (``decode 16``, ``prefill 512``) with the defaults, its calls noted."""
    sizes: dict[str, list[int]] = {"decode": [], "prefill": []}
    for text in phases:
        phase, _, size = text.partition(" ")
        if phase in sizes and size.isdecimal():
            sizes[phase].append(int(size))
    collection = Collection(runner.device)
    tuned = runner.scope.tuned
    runner.scope.switch(False)
    try:
        for request in requests(sizes["decode"], sizes["prefill"]):
            step = runner.step(request)  # a decode step fills its key-value cache before calls are collected
            with collecting(collection):
                step()
    finally:
        runner.scope.switch(tuned)
    return collection


class _Over(Exception):  # noqa: N818 - no error: it leaves the block before anything is tuned
    pass


def of_script(files: Iterable[Path]) -> Collection:
    """Import files and note the calls of ops that this makes, tuning nothing: their own `autotune` blocks join in.

    Raises UserCodeError for a file that fails, and UsageError where no call was made.
    """
    block = autotune(policy="fresh")
    try:
        with block:
            for file in files:
                load_file(file)
            raise _Over
    except _Over:
        pass
    if not block.collection:
        raise UsageError(f"{', '.join(map(str, files))}: importing it calls no op, so that there is nothing to race")
    return block.collection
