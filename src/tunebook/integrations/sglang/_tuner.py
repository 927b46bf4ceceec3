"""What is asked of FlashInfer's tuner around a step: to wait, and to give way to winners."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tunebook.integrations.flashinfer import Kept


@contextmanager
def waiting(tuner: Any) -> Iterator[None]:
    """In the block the contexts in which FlashInfer tunes, and which are open, do not count: what is known serves."""
    with tuner._lock:
        open_contexts, tuner._active_tuning_contexts = tuner._active_tuning_contexts, 0
        tuner.is_tuning_mode = False
    try:
        yield
    finally:
        with tuner._lock:
            tuner._active_tuning_contexts += open_contexts
            tuner.is_tuning_mode = tuner._active_tuning_contexts > 0


def ranks() -> Any:
    """FlashInfer's process group, if there are others in it."""
    group = importlib.import_module("flashinfer.autotuner").get_autotune_process_group()
    return group if group is not None and group.size() > 1 else None


def all_agree(well: bool) -> bool:
    """Whether all is well on every rank of FlashInfer's process group; they ask in step."""
    group = ranks()
    if group is None:
        return well
    from torch.distributed import all_gather_object

    answers: list[bool] = [False] * group.size()
    all_gather_object(answers, well, group=group)
    return all(answers)


def give_way(tuner: Any) -> None:
    """Take out what FlashInfer has tuned for other runners of problems with a winner, where an op was asked for with fewer
    of them: it would be served before the winner."""
    shut = tuner._file_configs.shut if isinstance(tuner._file_configs, Kept) else ()
    for key in [key for key in tuner.profiling_cache if key.file_key in shut]:
        del tuner.profiling_cache[key]
