"""A tactic of the kernels, and what this processor can run."""

from __future__ import annotations

from tunebook.kernels._native import _native


def instruction_sets() -> list[str]:
    """Usable here, best first: of amx, avx512_bf16, avx512, avx2. Empty where the kernels cannot run."""
    return _native.instruction_sets()


def processors() -> int:
    """Processors that affinity and cgroup quota leave to this process."""
    return _native.processors()


def tactic(
    *,
    isa: str,
    dot: bool = False,
    row_tile: int = 4,
    columns: int = 0,
    split: str = "columns",
    prefetch: int = 0,
    threads: int = 1,
    backend: str = "auto",
) -> _native.Tactic:
    """How to compute a call.

    Args:
        isa: one of `instruction_sets`.
        dot: dot products along row-major weights instead of tiles, which pack each block before they use it.
        row_tile: rows of a tile; more than the instruction set has is as many as it has. AMX with more than 32 cuts K
            in chunks, each for all these rows.
        columns: result columns of one task; 0: as many as suit the threads and the cache.
        split: of the work: "columns"; "experts" (experts only: partial results of every pair, then their sum);
            "tokens": each thread takes a share of the tokens.
        prefetch: bytes ahead of the stream of weights; 0: none; -1: the next block, spread over the row tiles.
        threads: most threads to use.
        backend: "openmp": those of the OpenMP runtime that is loaded; "pool": our own; "auto": the first if there is one.

    Raises:
        ValueError: a value that is not among these.
    """
    return _native.tactic(
        isa=isa,
        dot=dot,
        row_tile=row_tile,
        columns=columns,
        split=split,
        prefetch=prefetch,
        threads=threads,
        backend=backend,
    )
