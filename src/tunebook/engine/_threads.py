"""The thread count of this process."""

from __future__ import annotations

from tunebook.envs import envs
from tunebook.errors import UsageError

#: More threads than any machine has cores; torch itself fails on absurd counts.
MAX_THREADS = 4096


def set_threads(threads: int | None) -> None:
    """Set torch's thread count: the argument, else TUNEBOOK_THREADS, else leave it. Raises UsageError outside 1…4096."""
    import torch

    chosen = threads if threads is not None else envs.TUNEBOOK_THREADS.get()
    if chosen is None:
        return
    if not 1 <= chosen <= MAX_THREADS:
        raise UsageError(f"threads={chosen} is not a thread count; it is from 1 to {MAX_THREADS}")
    if torch.get_num_threads() != chosen:
        torch.set_num_threads(chosen)
