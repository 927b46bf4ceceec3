"""Where the runs of this environment lie, found without loading torch, which takes longer than reading them."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from tunebook.book._heads import Head, read_head
from tunebook.devices import cache_sizes, cpu_isa, cpu_model, usable_cores
from tunebook.envs import envs
from tunebook.errors import StoreError
from tunebook.records import Environment
from tunebook.store import Location


@dataclass(frozen=True, kw_only=True)
class Place:
    """A cache and the run files beside it, whether or not they are there. `threads` is None for a cache named by its path."""

    cache: Path
    runs: Path
    threads: str | None = None

    def heads(self, model: str | None = None) -> list[Head]:
        """The runs, newest first, of `model` alone where it is given; files that are no runs are left out.

        With an explicit cache these are the runs named after it.
        """
        try:
            files = [file for file in self.runs.iterdir() if _names_a_run(file.name, self.cache.stem)]
        except OSError:
            return []
        heads = [head for file in files if (head := read_head(file)) is not None]
        return sorted((h for h in heads if model in (None, h.header.model)), key=lambda h: h.order, reverse=True)


def place_of(cache: Path | None = None, threads: int | None = None) -> Place:
    """Where `cache` and its runs lie; by default those of this machine with `threads` threads.

    Without `threads`, and without TUNEBOOK_THREADS, it is the one thread count that this machine has results for. Where
    there are several torch is asked how many threads it takes. Raises StoreError where nothing is known of this machine,
    and where it is none of several.
    """
    if cache is not None:
        here = Location.of(Environment(hard={"device": "any"}), cache)
        return Place(cache=here.cache, runs=here.runs)
    root = Path(envs.TUNEBOOK_CACHE_DIR.get()).absolute() / "autotune"
    chosen = threads if threads is not None else envs.TUNEBOOK_THREADS.get()
    if chosen is not None:
        return _place(chosen)
    machine = machine_facts()
    known = [
        count
        for count in range(1, 2 * int(machine["cores"]) + 1)
        if (root / Environment(hard={**machine, "threads": str(count)}).digest).is_dir()
    ]
    if not known:
        raise StoreError(f"{root}: nothing was tuned on this machine yet; `tunebook tune` does it")
    if len(known) > 1:
        import torch

        usual = torch.get_num_threads()
        if usual not in known:
            counts = ", ".join(map(str, known))
            raise StoreError(f"{root}: there are results for {counts} threads, torch takes {usual}; say --threads")
        return _place(usual)
    return _place(known[0])


def machine_facts() -> dict[str, str]:
    """The hard fields of this CPU's environment, but for the threads, which torch alone knows."""
    caches = cache_sizes()
    return {
        "device": f"cpu {cpu_model()}",
        "machine": platform.machine(),
        "isa": " ".join(cpu_isa()),
        "cores": str(usable_cores()),
        "l2": str(caches.get("l2", 0)),
        "l3": str(caches.get("l3", 0)),
    }


def cache_with(threads: int) -> Path:
    """Where this machine's cache for so many threads lies, or would lie."""
    return Location.of(Environment(hard={**machine_facts(), "threads": str(threads)})).cache


def _place(threads: int) -> Place:
    location = Location.of(Environment(hard={**machine_facts(), "threads": str(threads)}))
    if not location.cache.parent.is_dir():
        raise StoreError(
            f"{location.cache.parent}: nothing was tuned with {threads} threads here; `tunebook tune` does it"
        )
    return Place(cache=location.cache, runs=location.runs, threads=str(threads))


def _names_a_run(name: str, stem: str) -> bool:
    return name.startswith(f"{stem}.") and name.endswith(".jsonl")
